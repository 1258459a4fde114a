// Objects and buffers that are kept, and such that come and go. A heap snapshot has V8 give back all
// that it can, as it does after a while without work. Every answer follows from how many there have been.

const { createHash } = require('crypto');
const { getHeapSnapshot } = require('v8');

let state = 1;
const draw = limit => (state = state * 48271 % 2147483647) % limit;

const zeroes = Buffer.alloc(500000);
function buffer(largest) {
    const bytes = Buffer.alloc(1 + draw(largest));
    if (!bytes.equals(zeroes.subarray(0, bytes.length))) throw new Error('a new buffer is not zeroes');
    return bytes.fill(String(draw(1e9)));
}

const objects = [], buffers = [];
for (let i = 0; i < 30000; i++) objects.push({ i, text: 'text ' + draw(1e9) });
for (let i = 0; i < 300; i++) buffers.push(buffer(20000));
let count = 0;

function answer(done) {
    state = ++count;
    let passing = 0;
    for (let round = 0; round < 5; round++) {
        const some = [];
        for (let i = 0; i < 30000; i++) some.push({ i, pair: [i, draw(100)] });
        for (let i = 0; i < 20; i++) buffer(500000);
        passing += some.reduce((sum, one) => sum + one.pair[1], 0);
    }
    for (let i = 0; i < 3000; i++) objects[draw(objects.length)] = { i, text: 'new ' + draw(1e9) };
    for (let i = 0; i < 50; i++) buffers[draw(buffers.length)] = buffer(20000);
    const snapshot = getHeapSnapshot();
    snapshot.destroy();
    const sum = createHash('sha256').update(JSON.stringify(objects));
    for (const one of buffers) sum.update(one);
    done({ count, sum: sum.digest('hex') + ' ' + passing, wrong: 0 });
}

require('http').createServer((request, response) => answer(said => {
    response.setHeader('Connection', 'close');
    response.end(JSON.stringify(said));
})).listen(8080);
