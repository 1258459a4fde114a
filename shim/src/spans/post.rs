//! One request of HTTP/1.1 on the event loop.

use std::io::{self, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::endpoint::Endpoint;

/// Longest first line of an answer that is looked at.
const LINE: usize = 256;

/// Has a collector take `body`, in the time that it has for that.
pub(super) async fn post(endpoint: &Endpoint, body: &[u8]) -> io::Result<()> {
    let exchange = tokio::time::timeout(endpoint.patience, exchange(endpoint, body));
    let line = exchange.await.map_err(|_| ErrorKind::TimedOut)??;
    let code = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1));
    if code.is_some_and(|code| code.len() == 3 && code.starts_with('2')) {
        return Ok(());
    }
    Err(io::Error::other(format!("it answers {line:?}")))
}

/// The first line of the answer.
async fn exchange(endpoint: &Endpoint, body: &[u8]) -> io::Result<String> {
    let mut stream = TcpStream::connect(endpoint.address).await?;
    let head = format!("{}Content-Length: {}\r\n\r\n", endpoint.head, body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    let mut line = Vec::new();
    while line.len() < LINE && !line.contains(&b'\n') {
        if stream.read_buf(&mut line).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    line.truncate(LINE);
    let line = String::from_utf8_lossy(&line);
    Ok(line.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;

    /// A collector that answers one request with `answer`, and what it was asked.
    fn collector(answer: &'static str) -> (Endpoint, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/base/", listener.local_addr().unwrap());
        let asked = std::thread::spawn(move || {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let mut asked = String::new();
            while !asked.ends_with("\r\n\r\n") {
                assert!(stream.read_line(&mut asked).unwrap() > 0);
            }
            let mut body = [0; 4];
            stream.read_exact(&mut body).unwrap();
            stream.get_mut().write_all(answer.as_bytes()).unwrap();
            asked + std::str::from_utf8(&body).unwrap()
        });
        (Endpoint::of_option("option", &url).unwrap(), asked)
    }

    #[test]
    fn only_an_answer_that_says_so_means_that_the_body_was_taken() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for (answer, complaint) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
            ("HTTP/1.0 204\r\n\r\n", ""),
            (
                "HTTP/1.1 503 Busy\r\n\r\n",
                "it answers \"HTTP/1.1 503 Busy\"",
            ),
            ("SSH-2.0-x\r\n", "it answers \"SSH-2.0-x\""),
            ("HTTP/1.1 2", "unexpected end of file"),
            ("", "unexpected end of file"),
        ] {
            let (endpoint, asked) = collector(answer);
            let result = runtime.block_on(post(&endpoint, b"body"));
            let told = result
                .err()
                .map_or(String::new(), |error| error.to_string());
            assert_eq!(told, complaint);
            let asked = asked.join().unwrap();
            assert!(
                asked.starts_with("POST /base/v1/traces HTTP/1.1\r\n"),
                "{asked}"
            );
            assert!(
                asked.ends_with("\r\nContent-Length: 4\r\n\r\nbody"),
                "{asked}"
            );
        }
    }
}
