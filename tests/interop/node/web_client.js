// What browsers' clients expect: the grpc-web package over HTTP/1.1: `web_client.js ORIGIN PROTO`.
'use strict';

const assert = require('node:assert/strict');
const { XMLHttpRequest } = require('./xhr.js');
globalThis.XMLHttpRequest = XMLHttpRequest;
const { loadSync } = require('@grpc/proto-loader');
const { GrpcWebClientBase, MethodDescriptor, StatusCode } = require('grpc-web');

const [origin, proto] = process.argv.slice(2);
const service = loadSync(proto, { keepCase: true, longs: String, enums: String })['chat.ChatService'];

function descriptor(name, type) {
  const method = service[name];
  return new MethodDescriptor(method.path, type, Object, Object, method.requestSerialize, (bytes) =>
    method.responseDeserialize(Buffer.from(bytes)),
  );
}

const sending = descriptor('SendMessage', 'unary');
const following = descriptor('SubscribeMessages', 'server_streaming');

function send(client, request) {
  return client.unaryCall(origin + sending.getName(), request, {}, sending);
}

// Follows a room; `next` waits for its next message.
function follow(client, request) {
  const arrived = [], waiting = [];
  const stream = client.serverStreaming(origin + following.getName(), request, {}, following);
  const settle = (outcome) => (waiting.length ? waiting.shift()(outcome) : arrived.push(outcome));
  stream.on('data', (message) => settle(Promise.resolve(message)));
  stream.on('error', (error) => {
    const failed = Promise.reject(error);
    failed.catch(() => {});
    settle(failed);
  });
  const next = () => (arrived.length ? arrived.shift() : new Promise((resolve) => waiting.push(resolve)));
  return { next, cancel: () => stream.cancel() };
}

// Unary calls in both framings, refusals included.
async function unary(format) {
  const client = new GrpcWebClientBase({ format });
  const reply = await send(client, { user: 'Web', content: `Hi from ${format}`, room: 'web' });
  assert.ok(reply.message_id && BigInt(reply.sequence) > 0n, JSON.stringify(reply));
  await assert.rejects(send(client, { content: 'Hi!', room: 'web' }), (error) => {
    assert.deepEqual([error.code, error.message], [StatusCode.INVALID_ARGUMENT, 'user is required']);
    assert.ok(error.metadata['grpc-status-details-bin'], 'no details');
    return true;
  });
}

// A stream that delivers while it is open, which browsers can do in the text framing only.
async function streaming() {
  const client = new GrpcWebClientBase({ format: 'text' });
  const room = follow(client, { room: 'web', user: 'Web' });
  assert.equal((await room.next()).content, 'Welcome to room web, Web!');
  for (const content of ['one', 'zwei \u{1d11e}', '', 'x'.repeat(100_000), 'five']) {
    const sent = await send(client, { user: 'Web', content, room: 'web' });
    const heard = await room.next();
    assert.deepEqual([heard.id, heard.content ?? ''], [sent.message_id, content]);
  }
  room.cancel();

  const replay = follow(client, { room: 'web', user: 'Web', after_sequence: '0' });
  await replay.next();
  for (const content of ['Hi from binary', 'Hi from text', 'one']) assert.equal((await replay.next()).content, content);
  replay.cancel();

  const refused = follow(client, { room: '', user: 'Web' });
  await assert.rejects(async () => refused.next(), { code: StatusCode.INVALID_ARGUMENT, message: 'room is required' });
}

// What a browser asks before it calls from another origin.
async function preflight() {
  const answer = await fetch(origin + sending.getName(), {
    method: 'OPTIONS',
    headers: {
      origin: 'https://chat.example.org',
      'access-control-request-method': 'POST',
      'access-control-request-headers': 'content-type,x-grpc-web,x-user-agent,grpc-timeout',
    },
  });
  assert.ok(answer.ok, `${answer.status}`);
  assert.match(answer.headers.get('access-control-allow-origin'), /^(\*|https:\/\/chat\.example\.org)$/);
  assert.match(answer.headers.get('access-control-allow-methods'), /POST/);
  assert.match(answer.headers.get('access-control-allow-headers'), /x-grpc-web/);
}

async function main() {
  await unary('binary');
  await unary('text');
  await streaming();
  await preflight();
  console.log('binary, text, streaming and preflight as expected');
}

main().then(
  () => process.exit(0),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
