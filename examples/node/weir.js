// What the examples share: the services of a proto, and trying again when a call breaks.
'use strict';

const path = require('node:path');
const { setTimeout: pause } = require('node:timers/promises');
const grpc = require('@grpc/grpc-js');
const { loadSync } = require('@grpc/proto-loader');

// The packages of a file below proto/, loaded at run time: nothing is generated.
function load(file) {
  const directory = path.join(__dirname, '../../proto');
  // Sequences are 64 bits wide, wider than a JavaScript number: they are kept as text.
  const proto = loadSync(file, { includeDirs: [directory], keepCase: true, longs: String, enums: String });
  return grpc.loadPackageDefinition(proto);
}

// What a call ends with while the server restarts: the next attempt may succeed.
const { UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, CANCELLED, INTERNAL, UNKNOWN } = grpc.status;
const temporary = [UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, CANCELLED, INTERNAL, UNKNOWN];
const isTemporary = (error) => temporary.includes(error.code);
const PAUSE = 500;

// Calls `attempt` until it returns, with a pause after each that broke; a refusal is thrown.
async function again(attempt) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (!isTemporary(error)) throw error;
    }
    await pause(PAUSE);
  }
}

// A unary call as a promise.
function call(client, method, request, options = {}) {
  return new Promise((resolve, reject) => {
    client[method](request, options, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

// Metadata that names the log of a position: a server with another log refuses it.
function naming(log) {
  const metadata = new grpc.Metadata();
  if (log) metadata.set('log-id', log);
  return metadata;
}

// Runs a program and ends the process as it ended.
function run(main) {
  main().then(
    () => process.exit(0),
    (error) => {
      console.error(error.details ?? error.message);
      process.exit(1);
    },
  );
}

const credentials = grpc.credentials.createInsecure();

module.exports = { load, again, call, naming, run, credentials, isTemporary, PAUSE, status: grpc.status };
