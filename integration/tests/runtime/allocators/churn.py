# Objects and arrays that are kept, and such that come and go: of CPython's own allocator, of glibc's
# and of numpy's. Every answer follows from how many there have been.

import gc, http.server, json, random, threading, zlib
import numpy

draw = random.Random(0)
texts = ["text %d" % draw.getrandbits(60) for _ in range(60000)]
arrays = [numpy.full(draw.randrange(1, 20000), draw.random()) for _ in range(100)]
count = 0

def zeroes(length):
    array = numpy.zeros(length)
    assert not array.any(), "new zeroes are not zeroes"
    return array

def churn(seed, found):
    draw = random.Random(seed)
    total = 0.0
    for _ in range(10):
        some = [zeroes(draw.randrange(1, 60000)) + i for i in range(10)]
        words = [str(draw.random()) for _ in range(5000)]
        total += sum(array.sum() for array in some) + len("".join(words))
    found[seed] = total

def answer():
    global count
    count += 1
    found = {}
    threads = [threading.Thread(target=churn, args=(count * 10 + i, found)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    draw = random.Random(count)
    for _ in range(6000):
        texts[draw.randrange(len(texts))] = "new %d" % draw.getrandbits(60)
    for _ in range(20):
        arrays[draw.randrange(len(arrays))] = zeroes(draw.randrange(1, 20000)) + draw.random()
    gc.collect()
    sum = zlib.crc32("".join(texts).encode())
    for array in arrays:
        sum = zlib.crc32(array.tobytes(), sum)
    return {"count": count, "sum": "%x %r" % (sum, sorted(found.items())), "wrong": 0}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        text = json.dumps(answer(), default=float).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *words):
        pass

http.server.HTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
