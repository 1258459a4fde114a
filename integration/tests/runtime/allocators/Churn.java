// Arrays that are kept, and arrays that come and go, on a heap that grows and shrinks with every
// request. Every answer follows from how many there have been.

import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.util.Random;
import java.util.zip.CRC32;

public class Churn {
    static final byte[][] kept = new byte[2000][];
    static int count = 0;

    static byte[] block(Random random, int largest) {
        byte[] bytes = new byte[1 + random.nextInt(largest)];
        for (byte one : bytes) {
            if (one != 0) throw new IllegalStateException("a new array is not zeroes");
        }
        random.nextBytes(bytes);
        return bytes;
    }

    static synchronized String answer() {
        count++;
        Random random = new Random(count);
        CRC32 passing = new CRC32();
        for (int round = 0; round < 20; round++) {
            byte[][] some = new byte[60][];
            for (int i = 0; i < some.length; i++) some[i] = block(random, 40_000);
            for (byte[] one : some) passing.update(one);
        }
        for (int i = 0; i < 200; i++) kept[random.nextInt(kept.length)] = block(random, 8_000);
        System.gc();
        CRC32 sum = new CRC32();
        for (byte[] one : kept) sum.update(one);
        return String.format("{\"count\": %d, \"sum\": \"%x %x\", \"wrong\": 0}",
            count, sum.getValue(), passing.getValue());
    }

    public static void main(String[] arguments) throws Exception {
        Random random = new Random(0);
        for (int i = 0; i < kept.length; i++) kept[i] = block(random, 8_000);
        HttpServer server = HttpServer.create(new InetSocketAddress(8080), 0);
        server.createContext("/", exchange -> {
            byte[] text = answer().getBytes();
            exchange.getResponseHeaders().add("Connection", "close");
            exchange.sendResponseHeaders(200, text.length);
            exchange.getResponseBody().write(text);
            exchange.close();
        });
        server.start();
    }
}
