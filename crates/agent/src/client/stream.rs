//! Responses that are parsed while they arrive.

use std::io::BufReader;
use std::{fmt, io};

use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Body, BodyReader};

use super::{Client, ClientError, IDLE_TIME_MAX, JsonArray};

/// The read buffer of such a response.
const ITEMS_BYTES: usize = 64 << 10;

impl Client {
    /// Sends a GET request and parses the elements of the array in the response as they arrive. Memory use
    /// does not depend on their number.
    pub fn get_items<T>(&self, path: &str) -> Result<Items<T>, ClientError> {
        let response = self.get(path, "application/json")?;
        Ok(self.items(path, response))
    }

    /// The elements of the array in a response.
    fn items<T>(&self, path: &str, response: Response<Body>) -> Items<T> {
        Items {
            client: self.clone(),
            path: path.to_owned(),
            status: response.status().as_u16(),
            array: JsonArray::new(BufReader::with_capacity(
                ITEMS_BYTES,
                response.into_body().into_reader(),
            )),
        }
    }
}

/// The iterator of [`Client::items`].
pub struct Items<T> {
    client: Client,
    path: String,
    status: u16,
    array: JsonArray<T, BufReader<BodyReader<'static>>>,
}

impl<T: DeserializeOwned> Iterator for Items<T> {
    type Item = Result<T, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let element = self.array.next()?;
        Some(
            element.map_err(|error| match error.is_io() || error.is_eof() {
                true => {
                    let why = describe_read_error(&error.into());
                    self.client.unreachable(&self.path, &why)
                }
                false => self.client.not_flowtally(&self.path, self.status, &error),
            }),
        )
    }
}

impl<T> fmt::Debug for Items<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Items")
            .field("path", &self.path)
            .field("array", &self.array)
            .finish_non_exhaustive()
    }
}

/// Explains why the body of a response could not be read.
pub fn describe_read_error(error: &io::Error) -> String {
    let of_ureq = error.get_ref().and_then(|e| e.downcast_ref());
    match of_ureq {
        Some(ureq::Error::Timeout(_)) => {
            format!(
                "no more data has arrived for {} seconds",
                IDLE_TIME_MAX.as_secs()
            )
        }
        _ => format!("the response is incomplete: {error}"),
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
    fn a_response_may_be_slow_but_not_idle() {
        // Together, the pauses are longer than this; each is much shorter, as a busy machine stretches it.
        const IDLE_TIME_MAX: Duration = Duration::from_secs(2);
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
                std::thread::sleep(IDLE_TIME_MAX / 8);
                stream.write_all(b"x").unwrap();
            }
            stream
        });
        let client = Client::with_idle_max(&server, IDLE_TIME_MAX).unwrap();
        let mut body = client.get("/x", "*/*").unwrap().into_body().into_reader();
        let mut read = Vec::new();
        let error = body.read_to_end(&mut read).unwrap_err();
        assert_eq!(read, [b'x'; 10]);
        assert!(
            describe_read_error(&error).contains("no more data"),
            "{error}"
        );
        drop(silent.join());
    }

    /// Reads `body` as an array of objects, and returns their numbers and whether the array was complete.
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
            let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(response.as_bytes()).unwrap();
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
            ("", vec![], "is incomplete"),
            ("[", vec![], "is incomplete"),
            ("[{\"n\":1}", vec![1], "is incomplete"),
            ("[{\"n\":1},", vec![1], "is incomplete"),
            ("[{\"n\":1},{\"n\"", vec![1], "is incomplete"),
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
