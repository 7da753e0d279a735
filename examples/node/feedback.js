// Give feedback and hear the answers: a bidirectional stream that survives a restart of the server. From the repository's
// root:
//
//   npm install --prefix examples/node
//   node examples/node/feedback.js ann
//
// Each line that is typed is one feedback. `weir feedback reply` answers it; the answer shows here, now or the next time.
'use strict';

const { randomUUID } = require('node:crypto');
const readline = require('node:readline');
const { load, again, run, credentials } = require('./weir');

const [consumer_id, address = '127.0.0.1:50051'] = process.argv.slice(2);
if (!consumer_id) {
  console.error('usage: feedback.js CONSUMER [ADDRESS]');
  process.exit(2);
}

const { FeedbackService } = load('feedback.proto');
const service = new FeedbackService(address, credentials);

const unanswered = []; // What the server has not thanked for yet.
let isDone = false; // Nothing more will be typed.
let stream; // The stream that is open now.

function read() {
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('line', (feedback) => {
    // The key makes it safe to send it again when the answer got lost.
    const request = { consumer_id, feedback, idempotency_key: randomUUID() };
    unanswered.push(request);
    stream?.write(request);
  });
  lines.on('close', () => {
    isDone = true;
    stream?.end();
  });
}

// Sends and prints until the stream ends: without an error only when everything typed is answered.
async function converse() {
  stream = service.SendFeedback();
  for (const request of unanswered) stream.write(request);
  if (isDone) stream.end();
  try {
    for await (const { kind, author, response_message } of stream) {
      if (kind === 'STAFF_REPLY') {
        console.log(`${author}: ${response_message}`);
      } else {
        console.log(response_message);
        unanswered.shift();
      }
    }
  } finally {
    stream = undefined;
  }
}

read();
run(() => again(converse));
