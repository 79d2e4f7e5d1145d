//! Answers that are read as they come.

use std::io::{BufRead, BufReader};
use std::marker::PhantomData;
use std::{fmt, io};

use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Body, BodyReader};

use super::{Client, ClientError, IDLE_MAX};

/// What is read at once of an answer that is read element by element.
const ITEMS_BYTES: usize = 64 << 10;

impl Client {
    /// The elements of an array that a GET is answered with, as they come: memory does not grow with their
    /// number.
    pub fn get_items<T>(&self, path: &str) -> Result<Items<T>, ClientError> {
        let answer = self.get(path, "application/json")?;
        Ok(self.items(path, answer))
    }

    /// The elements of the array that is an answer.
    pub fn items<T>(&self, path: &str, answer: Response<Body>) -> Items<T> {
        Items {
            client: self.clone(),
            path: path.to_owned(),
            status: answer.status().as_u16(),
            reader: BufReader::with_capacity(ITEMS_BYTES, answer.into_body().into_reader()),
            state: ItemsState::Begin,
            of: PhantomData,
        }
    }
}

/// See [`Client::items`].
pub struct Items<T> {
    client: Client,
    path: String,
    status: u16,
    reader: BufReader<BodyReader<'static>>,
    state: ItemsState,
    of: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ItemsState {
    Begin,
    Inside,
    Ended,
}

impl<T: DeserializeOwned> Items<T> {
    fn read(&mut self) -> Result<Option<T>, serde_json::Error> {
        let expected = match self.state {
            ItemsState::Begin => b'[',
            ItemsState::Inside => b',',
            ItemsState::Ended => return Ok(None),
        };
        let byte = self.next_byte()?;
        let ends = match self.state {
            ItemsState::Begin if byte == expected => self.peek_byte()? == b']',
            ItemsState::Inside => byte == b']',
            _ => false,
        };
        if ends {
            self.state = ItemsState::Ended;
            return Ok(None);
        }
        if byte != expected {
            let why = format!(
                "there is {:?} where an array has {:?}",
                byte as char, expected as char
            );
            return Err(serde::de::Error::custom(why));
        }
        self.state = ItemsState::Inside;
        let mut json = serde_json::Deserializer::from_reader(&mut self.reader);
        T::deserialize(&mut json).map(Some)
    }

    /// The next byte that is no white space, which is taken.
    fn next_byte(&mut self) -> Result<u8, serde_json::Error> {
        let byte = self.peek_byte()?;
        self.reader.consume(1);
        Ok(byte)
    }

    fn peek_byte(&mut self) -> Result<u8, serde_json::Error> {
        loop {
            match self
                .reader
                .fill_buf()
                .map_err(serde_json::Error::io)?
                .first()
            {
                None => return Err(serde_json::Error::io(io::ErrorKind::UnexpectedEof.into())),
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.reader.consume(1),
                Some(byte) => return Ok(*byte),
            }
        }
    }
}

impl<T: DeserializeOwned> Iterator for Items<T> {
    type Item = Result<T, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().map_err(|error| {
            self.state = ItemsState::Ended;
            match error.is_io() || error.is_eof() {
                true => {
                    let why = broke_off(&error.into());
                    self.client.unreachable(&self.path, &why)
                }
                false => self.client.not_ours(&self.path, self.status, &error),
            }
        });
        read.transpose()
    }
}

impl<T> fmt::Debug for Items<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Items")
            .field("path", &self.path)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Why the body of an answer cannot be read on.
pub fn broke_off(error: &io::Error) -> String {
    let of_ureq = error.get_ref().and_then(|e| e.downcast_ref());
    match of_ureq {
        Some(ureq::Error::Timeout(_)) => {
            format!("nothing more has come for {} seconds", IDLE_MAX.as_secs())
        }
        _ => format!("the connection broke off: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::time::Duration;

    use serde::Deserialize;

    use super::*;
    use crate::client::Server;

    #[test]
    fn an_answer_may_be_slow_but_not_silent() {
        // Together, the pauses are longer than this; each is much shorter, as a busy machine stretches it.
        const IDLE_MAX: Duration = Duration::from_secs(2);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Server::default()
        };
        let silent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _head = stream.read(&mut [0; 4096]).unwrap();
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            for _ in 0..10 {
                std::thread::sleep(IDLE_MAX / 8);
                stream.write_all(b"x").unwrap();
            }
            stream
        });
        let client = Client::with_idle_max(&server, IDLE_MAX).unwrap();
        let mut body = client.get("/x", "*/*").unwrap().into_body().into_reader();
        let mut read = Vec::new();
        let error = body.read_to_end(&mut read).unwrap_err();
        assert_eq!(read, [b'x'; 10]);
        assert!(broke_off(&error).contains("nothing more"), "{error}");
        drop(silent.join());
    }

    /// Reads `body` as numbers in objects, and says what came and whether it was whole.
    fn items_of(body: &'static str) -> (Vec<u64>, Result<(), String>) {
        #[derive(Deserialize)]
        struct Item {
            n: u64,
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Server::default()
        };
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _head = stream.read(&mut [0; 4096]).unwrap();
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let mut items = Client::new(&server).unwrap().get_items("/x").unwrap();
        let mut read = Vec::new();
        let ended = items.try_for_each(|item: Result<Item, _>| {
            item.map(|item| read.push(item.n))
                .map_err(|e| e.to_string())
        });
        assert!(items.next().is_none());
        answers.join().unwrap();
        (read, ended)
    }

    #[test]
    fn an_array_is_read_element_by_element() {
        for (body, expected) in [
            ("[]", vec![]),
            (" [ ] ", vec![]),
            ("[{\"n\":1}]\n", vec![1]),
            (
                "[{\"n\":1},\n{\"n\":2 , \"more\": [{}]}\r\n, {\"n\":3}]\n",
                vec![1, 2, 3],
            ),
        ] {
            assert_eq!(items_of(body), (expected, Ok(())), "{body}");
        }
        for (body, expected, why) in [
            ("", vec![], "broke off"),
            ("[", vec![], "broke off"),
            ("[{\"n\":1}", vec![1], "broke off"),
            ("[{\"n\":1},", vec![1], "broke off"),
            ("[{\"n\":1},{\"n\"", vec![1], "broke off"),
            ("{\"n\":1}", vec![], "not flowtally"),
            ("<html>", vec![], "not flowtally"),
            ("[{\"n\":1} {\"n\":2}]", vec![1], "not flowtally"),
            ("[{\"n\":1},]", vec![1], "not flowtally"),
            ("[1]", vec![], "not flowtally"),
        ] {
            let (read, ended) = items_of(body);
            assert_eq!(read, expected, "{body}");
            assert!(ended.is_err_and(|e| e.contains(why)), "{body}");
        }
    }
}
