// What Yjs clients expect of streaming.v1.StreamingService/Collaborate: `collab.js HOST:PORT PROTO_DIR`.
'use strict';

const assert = require('node:assert/strict');
const { EventEmitter } = require('node:events');
const grpc = require('@grpc/grpc-js');
const { loadSync } = require('@grpc/proto-loader');
const Y = require('yjs');
const sync = require('y-protocols/sync');
const awarenessProtocol = require('y-protocols/awareness');
const encoding = require('lib0/encoding');
const decoding = require('lib0/decoding');

const [address, protos] = process.argv.slice(2);
const options = { keepCase: true, longs: String, enums: String, oneofs: true, includeDirs: [protos] };
const loaded = grpc.loadPackageDefinition(loadSync(['streaming/v1/streaming.proto', 'weir/v1/documents.proto'], options));
const service = new loaded.streaming.v1.StreamingService(address, grpc.credentials.createInsecure());
const documents = new loaded.weir.v1.Documents(address, grpc.credentials.createInsecure());
const document_id = 'minutes';
const patience = 60_000;

// An editor: a Yjs document, and while it is connected a stream. It knows nothing of the server but y-protocols.
class Editor extends EventEmitter {
  constructor(user_id) {
    super();
    this.setMaxListeners(0);
    this.user_id = user_id;
    this.doc = new Y.Doc();
    this.text = this.doc.getText('content');
    this.awareness = new awarenessProtocol.Awareness(this.doc);
    this.present = [];
    this.unsaved = new Set();
    this.events = 0;
    this.doc.on('update', (update, origin) => {
      if (origin !== this) this.sendSync((encoder) => sync.writeUpdate(encoder, update));
    });
    this.awareness.on('update', ({ added, updated, removed }, origin) => {
      if (origin === this || !this.stream) return;
      const changed = [...added, ...updated, ...removed];
      this.send({ awareness: awarenessProtocol.encodeAwarenessUpdate(this.awareness, changed) });
    });
  }

  connect() {
    this.stream = service.Collaborate({ deadline: Date.now() + patience });
    this.isSynced = false;
    this.stream.on('data', (event) => this.receive(event));
    this.stream.on('error', (error) => error.code === grpc.status.CANCELLED || this.emit('error', error));
    this.sendSync((encoder) => sync.writeSyncStep1(encoder, this.doc));
    return this.until('it is in sync', () => this.isSynced && this.unsaved.size === 0);
  }

  disconnect() {
    this.stream.cancel();
    this.stream = undefined;
    this.unsaved.clear();
  }

  send(event) {
    this.stream.write({ id: `${this.user_id}-${++this.events}`, document_id, user_id: this.user_id, ...event });
  }

  sendSync(write) {
    if (!this.stream) return;
    const encoder = encoding.createEncoder();
    write(encoder);
    const message = encoding.toUint8Array(encoder);
    this.send({ sync: message });
    if (message[0] !== sync.messageYjsSyncStep1) this.unsaved.add(`${this.user_id}-${this.events}`);
  }

  receive(event) {
    assert.equal(event.document_id, document_id);
    if (event.event === 'sync') {
      const encoder = encoding.createEncoder();
      const kind = sync.readSyncMessage(decoding.createDecoder(event.sync), encoder, this.doc, this);
      const answer = encoding.toUint8Array(encoder);
      if (answer.length > 0) this.sendSync((out) => encoding.writeUint8Array(out, answer));
      this.isSynced ||= kind === sync.messageYjsSyncStep1;
    } else if (event.event === 'awareness') {
      awarenessProtocol.applyAwarenessUpdate(this.awareness, event.awareness, this);
    } else if (event.event === 'presence') {
      this.present.push(`${event.presence.user_id} ${event.presence.joined ? 'joined' : 'left'}`);
    } else {
      assert.ok(this.unsaved.delete(event.saved.event_id), 'an answer to nothing');
      this.lastSaved = BigInt(event.saved.sequence ?? 0);
    }
    this.emit('change');
  }

  // Waits until a condition that depends on what comes in holds.
  until(what, holds) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${this.user_id} waited in vain until ${what}`)), patience);
      const look = () => {
        if (!holds()) return;
        clearTimeout(timer);
        this.off('change', look);
        resolve();
      };
      this.on('change', look);
      this.once('error', reject);
      look();
    });
  }

  saved() {
    return this.until('everything is saved', () => this.unsaved.size === 0);
  }
}

const content = ({ text, doc }) => JSON.stringify([text.toDelta(), doc.getMap('meta').toJSON(), doc.getArray('list').toJSON()]);

async function equal(...editors) {
  for (const editor of editors) await editor.saved();
  const first = editors[0];
  for (const editor of editors) await editor.until('all are equal', () => content(editor) === content(first));
}

const unary = (method, request) =>
  new Promise((resolve, reject) => documents[method](request, (error, value) => (error ? reject(error) : resolve(value))));

async function main() {
  const [ann, bob] = [new Editor('ann'), new Editor('bob')];
  await ann.connect();
  await bob.connect();
  await ann.until('bob is there', () => ann.present.includes('bob joined'));

  // Together.
  ann.text.insert(0, 'Minutes of the meeting');
  await equal(ann, bob);
  assert.ok(ann.lastSaved > 0n, 'no sequence');
  bob.text.format(0, 7, { bold: true });
  bob.doc.getMap('meta').set('by', { names: ['ann', 'bob'], at: 1.5, done: false });
  await equal(bob, ann);

  // Awareness passes, and is not kept.
  ann.awareness.setLocalState({ name: 'Ann', cursor: 7 });
  await bob.until('ann is seen', () => bob.awareness.getStates().get(ann.doc.clientID)?.cursor === 7);

  // Offline, both at once and at the same places.
  ann.disconnect();
  await bob.until('ann is gone', () => bob.present.includes('ann left'));
  bob.disconnect();
  for (let i = 0; i < 200; i++) {
    ann.text.insert((i * 7) % ann.text.length, `a${i}🙂 `);
    bob.text.insert((i * 7) % bob.text.length, `b${i} `);
    if (i % 5 === 0) ann.text.delete(i % 20, 3);
    if (i % 7 === 0) bob.text.delete(i % 30, 4);
    ann.doc.getArray('list').push([i]);
    bob.doc.getArray('list').insert(0, [{ i }]);
  }
  ann.doc.getMap('meta').set('by', 'ann');
  bob.doc.getMap('meta').set('by', 'bob');
  assert.notEqual(content(ann), content(bob));
  await ann.connect();
  await bob.connect();
  await equal(ann, bob);
  assert.equal(ann.doc.getArray('list').length, 400);

  // A third comes later, when nobody else is there, and gets the whole document, and no awareness of before.
  ann.awareness.setLocalState({ name: 'Ann', cursor: 8 });
  await bob.until('ann moved', () => bob.awareness.getStates().get(ann.doc.clientID)?.cursor === 8);
  ann.disconnect();
  bob.disconnect();
  const carol = new Editor('carol');
  await carol.connect();
  assert.equal(content(carol), content(ann));
  assert.equal(carol.awareness.getStates().get(ann.doc.clientID), undefined);
  await ann.connect();
  await bob.connect();
  carol.text.insert(0, 'Carol: ');
  await equal(carol, ann, bob);

  // A browser: a server stream and unary calls on the same document.
  const web = new Y.Doc();
  const watch = documents.Watch({ document_id, user_id: 'dan', state_vector: Y.encodeStateVector(web) });
  watch.on('error', () => {});
  const heard = watch[Symbol.asyncIterator]();
  const read = async () => {
    const { value } = await heard.next();
    const encoder = encoding.createEncoder();
    sync.readSyncMessage(decoding.createDecoder(value.sync), encoder, web, 'server');
    return encoding.toUint8Array(encoder);
  };
  await read();
  assert.equal(web.getText('content').toString(), carol.text.toString());
  web.getText('content').insert(0, 'Dan: ');
  // The server's step 1 follows; what the browser answers is what the server lacks.
  const applied = await unary('Apply', { document_id, user_id: 'dan', id: 'd', event: 'sync', sync: await read() });
  assert.ok(BigInt(applied.sequence) > 0n);
  await ann.until('dan is heard', () => ann.text.toString().startsWith('Dan: '));
  await equal(ann, bob, carol);
  watch.cancel();

  const got = await unary('GetDocument', { document_id });
  const whole = new Y.Doc();
  Y.applyUpdate(whole, got.state);
  assert.equal(whole.getText('content').toString(), ann.text.toString());

  for (const editor of [ann, bob, carol]) {
    editor.disconnect();
    editor.awareness.destroy();
  }
  service.close();
  documents.close();
  console.log(`four editors agree on ${ann.text.length} characters`);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
