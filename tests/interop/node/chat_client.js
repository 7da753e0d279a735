// What Node clients expect of chat.ChatService: `chat_client.js HOST:PORT PROTO`.
'use strict';

const assert = require('node:assert/strict');
const grpc = require('@grpc/grpc-js');
const { loadSync } = require('@grpc/proto-loader');

const [address, proto] = process.argv.slice(2);
const { ChatService } = grpc.loadPackageDefinition(loadSync(proto, { keepCase: true, longs: String, enums: String })).chat;
const chat = new ChatService(address, grpc.credentials.createInsecure());
const room = 'node';
const soon = () => ({ deadline: Date.now() + 60_000 });

// Turns a call with a callback into a promise; gives the call to `use` first.
const reply = (start, use = () => {}) =>
  new Promise((resolve, reject) => use(start((error, value) => (error ? reject(error) : resolve(value)))));

// Takes messages off a stream one by one; signs of life are left out.
function taker(stream) {
  const messages = stream[Symbol.asyncIterator]();
  return async () => {
    for (;;) {
      const { value, done } = await messages.next();
      if (done || value.content !== 'Server is alive!') return value;
    }
  };
}

const timestamp = () => ({ seconds: String(Math.floor(Date.now() / 1000)), nanos: 5_000_000 });

async function unary(heard) {
  const sent = await reply((done) => chat.SendMessage({ user: 'Alice', content: 'Hi!', room }, soon(), done));
  const message = await heard();
  assert.deepEqual([message.id, message.user, message.content], [sent.message_id, 'Alice', 'Hi!']);
  assert.deepEqual(message.timestamp, sent.timestamp);
}

async function upload(heard) {
  const messages = Array.from({ length: 5 }, (_, i) => ({
    id: `batch_${i}`, user: 'Bob', content: `Part ${i}`, room, timestamp: timestamp(), type: 'CHAT',
  }));
  const answer = await reply(
    (done) => chat.UploadMessages(soon(), done),
    (call) => {
      messages.forEach((message) => call.write(message));
      call.end();
    },
  );
  assert.deepEqual(answer, { message_count: 5, success: true });
  for (const sent of messages) {
    const { sequence, ...message } = await heard();
    assert.ok(BigInt(sequence) > 0n, 'a record without a sequence');
    // What has its default value is absent on the wire.
    assert.deepEqual({ type: 'CHAT', ...message }, sent);
  }
}

async function conversation(heard) {
  const talk = chat.Chat(soon());
  const answered = taker(talk);
  for (let i = 0; i < 3; i++) {
    talk.write({ id: `client_${i}`, user: 'Charlie', content: `Number ${i}`, room, timestamp: timestamp() });
    const echo = await answered();
    assert.deepEqual([echo.id, echo.user, echo.content, echo.type], [`echo_client_${i}`, 'Server', `Echo: Number ${i}`, 'SYSTEM']);
    assert.equal((await heard()).id, `client_${i}`);
  }
  await reply((done) => chat.SendMessage({ user: 'Alice', content: 'I hear you', room }, soon(), done));
  assert.equal((await answered()).content, 'I hear you');
  assert.equal((await heard()).content, 'I hear you');
  talk.end();
  assert.equal(await answered(), undefined);
}

async function metrics() {
  const stream = chat.StreamMetrics({ instance_id: 'server-01', interval_seconds: 1 }, soon());
  const missing = new Map([['cpu_usage', 'core'], ['memory_usage', 'type'], ['requests_per_second', 'endpoint']]);
  for await (const metric of stream) {
    assert.equal(metric.labels.instance, 'server-01');
    const label = missing.get(metric.name);
    assert.ok(!label || metric.labels[label], `no ${label} on ${metric.name}`);
    missing.delete(metric.name);
    if (missing.size === 0) break;
  }
  assert.equal(missing.size, 0);
}

async function refusal() {
  const refused = reply((done) => chat.SendMessage({ content: 'Hi!', room }, soon(), done));
  await assert.rejects(refused, { code: grpc.status.INVALID_ARGUMENT, details: 'user is required' });
}

async function main() {
  const subscription = chat.SubscribeMessages({ room, user: 'Alice' }, soon());
  subscription.on('error', () => {});
  const heard = taker(subscription);
  const welcome = await heard();
  assert.deepEqual([welcome.id, welcome.user, welcome.type], ['system', 'System', 'SYSTEM']);
  assert.equal(welcome.content, `Welcome to room ${room}, Alice!`);
  for (const check of [unary, upload, conversation, metrics, refusal]) await check(heard);
  subscription.cancel();
  chat.close();
  console.log('five methods as expected');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
