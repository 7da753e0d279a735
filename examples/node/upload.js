// Upload a file: a client stream that goes on where it broke, also over a restart of the server or of this program. From
// the repository's root:
//
//   npm install --prefix examples/node
//   node examples/node/upload.js README.md
'use strict';

const { createHash } = require('node:crypto');
const { createReadStream, statSync } = require('node:fs');
const { once } = require('node:events');
const path = require('node:path');
const { pipeline } = require('node:stream/promises');
const { load, again, call, run, credentials, status } = require('./weir');

const [file, address = '127.0.0.1:50051'] = process.argv.slice(2);
if (!file) {
  console.error('usage: upload.js FILE [ADDRESS]');
  process.exit(2);
}

const CHUNK_BYTES = 64 * 1024;
const { StreamingService } = load('streaming/v1/streaming.proto').streaming.v1;
const { Files } = load('weir/v1/files.proto').weir.v1;
const streaming = new StreamingService(address, credentials);
const files = new Files(address, credentials);

async function describe() {
  const hash = createHash('sha256');
  await pipeline(createReadStream(file), hash);
  const checksum = hash.digest('hex');
  // The same file gets the same id, so that a second run goes on with what the first began.
  const upload_id = `upload-${checksum}`;
  return { filename: path.basename(file), total_size: statSync(file).size, checksum, upload_id };
}

// How many bytes the server has of it already.
async function committed(upload_id) {
  try {
    return Number((await call(files, 'GetUpload', { upload_id })).committed_offset);
  } catch (error) {
    if (error.code !== status.NOT_FOUND) throw error;
    return 0;
  }
}

async function send(metadata) {
  let offset = await committed(metadata.upload_id);
  let stream;
  const stored = new Promise((resolve, reject) => {
    stream = streaming.UploadFile((error, reply) => (error ? reject(error) : resolve(reply)));
  });
  // Settled before everything is written when the upload is refused, broken or complete already.
  let isSettled = false;
  const settled = stored.then(
    () => (isSettled = true),
    () => (isSettled = true),
  );
  stream.write({ metadata });
  for await (const chunk of createReadStream(file, { start: offset, highWaterMark: CHUNK_BYTES })) {
    if (isSettled) break;
    const hasRoom = stream.write({ chunk, offset, size: chunk.length });
    offset += chunk.length;
    if (!hasRoom) await Promise.race([once(stream, 'drain'), settled]);
  }
  stream.end();
  return stored;
}

run(async () => {
  const metadata = await describe();
  const { file_id, bytes_uploaded, download_url } = await again(() => send(metadata));
  console.log(file_id, bytes_uploaded, download_url);
});
