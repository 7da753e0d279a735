// As much of a browser's XMLHttpRequest as the grpc-web package needs, over Node's HTTP/1.1 client.
'use strict';

const http = require('node:http');

class XMLHttpRequest {
  readyState = 0;
  status = 0;
  statusText = '';
  responseType = '';
  onreadystatechange = null;
  #chunks = [];
  #response = { headers: {} };

  open(method, url) {
    this.request = http.request(url, { method, agent: false });
    this.#move(1);
  }

  setRequestHeader(name, value) {
    this.request.setHeader(name, value);
  }

  send(body) {
    this.request.on('response', (response) => this.#receive(response));
    this.request.on('error', () => this.#end(0));
    this.request.end(body === undefined ? undefined : Buffer.from(body));
  }

  abort() {
    this.request.destroy();
  }

  getResponseHeader(name) {
    return this.#response.headers[name.toLowerCase()] ?? null;
  }

  getAllResponseHeaders() {
    return Object.entries(this.#response.headers).map(([name, value]) => `${name}: ${value}\r\n`).join('');
  }

  get responseText() {
    return Buffer.concat(this.#chunks).toString('latin1');
  }

  get response() {
    if (this.responseType !== 'arraybuffer') return this.responseText;
    const bytes = Buffer.concat(this.#chunks);
    return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  }

  #receive(response) {
    this.#response = response;
    this.status = response.statusCode;
    this.#move(2);
    response.on('data', (chunk) => {
      this.#chunks.push(chunk);
      this.#move(3);
    });
    response.on('end', () => this.#end(this.status));
    response.on('error', () => this.#end(0));
  }

  #end(status) {
    this.status = status;
    if (this.readyState < 4) this.#move(4);
  }

  #move(state) {
    this.readyState = state;
    this.onreadystatechange?.();
  }
}

module.exports = { XMLHttpRequest };
