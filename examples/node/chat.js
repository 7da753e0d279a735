// Chat in a room of Weir. From the repository's root:
//
//   npm install --prefix examples/node
//   node examples/node/chat.js ann
//
// The proto is loaded at run time: nothing is generated. What is typed is said in the room; what the room says is
// printed. Two fields make it survive a restart of the server: `after_sequence` continues a broken subscription,
// `idempotency_key` makes it safe to say a line again.
'use strict';

const { randomUUID } = require('node:crypto');
const { EventEmitter, once } = require('node:events');
const readline = require('node:readline');
const { setTimeout: pause } = require('node:timers/promises');
const { load, again, call, naming, run, credentials, isTemporary, PAUSE } = require('./weir');

const [user, room = 'general', address = '127.0.0.1:50051'] = process.argv.slice(2);
if (!user) {
  console.error('usage: chat.js USER [ROOM] [ADDRESS]');
  process.exit(2);
}

const { ChatService } = load('chat.proto').chat;
const chat = new ChatService(address, credentials);

let position; // The sequence read last; unknown until the server has answered.
let log; // The log that it is of.
const shown = new EventEmitter();

// Prints what is said, for ever.
async function follow() {
  for (;;) {
    const isNew = position === undefined;
    const stream = chat.SubscribeMessages({ room, user, after_sequence: position }, naming(log));
    // The header says where the stream begins, so that not even a break before the first message loses one.
    stream.on('metadata', (header) => {
      if (position === undefined) [position, log] = ['after-sequence', 'log-id'].map((name) => header.get(name)[0]);
    });
    try {
      for await (const message of stream) {
        // The welcome is no record: it has no sequence, and is no news the second time.
        const isRecord = message.sequence && message.sequence !== '0';
        if (isRecord || isNew) console.log(`${message.user}: ${message.content}`);
        if (isRecord) position = message.sequence;
        shown.emit('message');
      }
    } catch (error) {
      if (!isTemporary(error)) throw error;
    }
    await pause(PAUSE);
  }
}

// Gives the line's sequence once it is on disk.
async function say(content) {
  const request = { user, room, content, idempotency_key: randomUUID() };
  const reply = await again(() => call(chat, 'SendMessage', request, { deadline: Date.now() + 10_000 }));
  return reply.sequence;
}

async function main() {
  const following = follow();
  let last = '0';
  const talking = (async () => {
    // What is said before the room is followed would not be shown.
    await once(shown, 'message');
    for await (const line of readline.createInterface({ input: process.stdin })) last = await say(line);
    // What was said last is shown before the end.
    const signal = AbortSignal.timeout(5000);
    while (BigInt(position ?? 0) < BigInt(last)) await once(shown, 'message', { signal });
  })();
  await Promise.race([following, talking]);
  chat.close();
}

run(main);
