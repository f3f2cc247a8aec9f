//! HTTP/1.1, as far as a load needs it.

use std::fmt::Write as _;
use std::ops::Range;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Request, Stream};

pub(super) struct Connection {
    stream: Stream,
    answer: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, answer: Vec::with_capacity(16 * 1024) }
    }

    pub(super) async fn exchange(&mut self, request: &Request) -> Vec<u8> {
        self.stream.write_all(&bytes(request)).await.expect("the connection is kept alive");
        self.stream.flush().await.expect("the connection is kept alive");
        self.answer.clear();
        let body = loop {
            let read = self.stream.read_buf(&mut self.answer).await;
            assert!(read.expect("the connection is kept alive") > 0, "it ended the connection");
            if let Some(body) = body(&self.answer).filter(|body| self.answer.len() >= body.end) {
                break body;
            }
        };
        let good = self.answer.starts_with(b"HTTP/1.1 20");
        assert!(good, "it answers {}", String::from_utf8_lossy(&self.answer));
        self.answer[body].to_vec()
    }
}

fn bytes(request: &Request) -> Vec<u8> {
    let Request { path, headers, body } = request;
    let mut head = format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n");
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").expect("strings take everything");
    }
    write!(head, "content-length: {}\r\n\r\n", body.len()).expect("strings take everything");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// Where the body is or will be, when the head is there.
fn body(answer: &[u8]) -> Option<Range<usize>> {
    const LENGTH: &[u8] = b"\r\ncontent-length: ";
    let start = find(answer, b"\r\n\r\n")? + 4;
    let head = &answer[..start];
    let digits = head.get(find(head, LENGTH)? + LENGTH.len()..)?;
    let length = digits.iter().take_while(|digit| digit.is_ascii_digit());
    let length = length.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    Some(start..start + length)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::body;

    #[test]
    fn the_end_of_an_answer_is_known_from_its_head() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n"), None);
        assert_eq!(body(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\nx: y\r\n\r\n{"), Some(45..57));
    }
}
