// Follow a user's notifications, and those for everybody: a server stream that survives a restart of the server. From the
// repository's root:
//
//   npm install --prefix examples/node
//   node examples/node/notifications.js ann
//
// `weir notify --user ann --title Hello` sends one.
'use strict';

const { load, again, naming, run, credentials } = require('./weir');

const [user, count = 'all', address = '127.0.0.1:50051'] = process.argv.slice(2);
if (!user) {
  console.error('usage: notifications.js USER [COUNT|all] [ADDRESS]');
  process.exit(2);
}

const { StreamingService } = load('streaming/v1/streaming.proto').streaming.v1;
const service = new StreamingService(address, credentials);

let position; // The sequence read last; unknown until the server has answered.
let log; // The log that it is of.
let missing = count === 'all' ? Infinity : Number(count);

// Prints notifications until the stream ends or enough came.
async function follow() {
  while (missing > 0) {
    const stream = service.SubscribeToNotifications({ user_id: user, after_sequence: position }, naming(log));
    // The header says where the stream begins, so that not even a break before the first notification loses one.
    stream.on('metadata', (header) => {
      if (position === undefined) [position, log] = ['after-sequence', 'log-id'].map((name) => header.get(name)[0]);
    });
    for await (const { sequence, category, title, body } of stream) {
      position = sequence;
      console.log(`[${category}] ${title}: ${body}`);
      missing -= 1;
      if (missing === 0) return;
    }
  }
}

run(() => again(follow));
