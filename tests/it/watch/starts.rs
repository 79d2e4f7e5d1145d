//! Starts and ends of the agent, and connections that are open before and after: at loopback addresses of this host, so that
//! nobody needs to be root.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use super::network::Killed;
use crate::daemon::signal;
use crate::send::url;
use crate::support::Daemon;
use crate::wait::until;

/// A service, and a connection at loopback addresses.
struct Place {
    daemon: Daemon,
    dir: tempfile::TempDir,
    /// The client's end, and the server's.
    connection: Option<(TcpStream, TcpStream)>,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&dir.path().join("db"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        // Other tests have connections, too.
        let apps = format!("address,app\n{address},server\n");
        std::fs::write(dir.path().join("apps"), apps).unwrap();
        let rule = "[[app]]\nname = \"test\"\n";
        std::fs::write(dir.path().join("rules"), rule).unwrap();
        Place {
            daemon,
            dir,
            connection: Some((client, server)),
        }
    }

    /// Moves bytes in both directions.
    fn exchange(&mut self, sent: usize, received: usize) {
        let (client, server) = self.connection.as_mut().unwrap();
        client.write_all(&vec![0; sent]).unwrap();
        server.read_exact(&mut vec![0; sent]).unwrap();
        server.write_all(&vec![0; received]).unwrap();
        client.read_exact(&mut vec![0; received]).unwrap();
    }

    /// Starts an agent, and waits until it has looked at all sockets.
    fn agent(&self, arguments: &[&str]) -> Killed {
        let file = |name: &str| self.dir.path().join(name);
        let _there_may_be_none = std::fs::remove_file(file("metrics"));
        let mut command = Command::new(Daemon::binary());
        command.args(["agent", "watch", "--interval", "1", "--no-directory"]);
        command.args(["--url", &url(&self.daemon)]);
        command.arg("--state-dir").arg(file("state"));
        command.arg("--metrics-file").arg(file("metrics"));
        command.arg("--apps").arg(file("apps"));
        command.arg("--app-rules").arg(file("rules"));
        let agent = Killed::spawn(command.args(arguments).stdout(Stdio::null()));
        until("the agent to look", || file("metrics").exists());
        agent
    }

    fn looks(&self) -> u64 {
        let metrics = std::fs::read_to_string(self.dir.path().join("metrics")).unwrap();
        let mut lines = metrics.lines();
        let looks = lines.find_map(|line| line.strip_prefix("flowtally_agent_looks_total "));
        looks.unwrap().parse().unwrap()
    }

    fn until_looked(&self) {
        let before = self.looks();
        // One may have begun already.
        until("the agent to look", || self.looks() >= before + 2);
    }

    /// What was counted of the connection: its source application, and the bytes in both directions.
    fn counted(&self) -> Vec<(String, u64, u64)> {
        let path = "/flows?from=0&to=4294967295&dest_app=server&group_by=src_app";
        let rows = self.daemon.client.get(path, &[]).unwrap().json();
        let rows = rows.as_array().unwrap().iter().map(|row| {
            let src_app = row["src_app"].as_str().unwrap().to_owned();
            let bytes = |field: &str| row[field].as_u64().unwrap();
            (src_app, bytes("bytes_tx"), bytes("bytes_rx"))
        });
        rows.collect()
    }

    #[track_caller]
    fn until_counted(&self, sent: u64, received: u64) {
        let expected = [("test".to_owned(), sent, received)];
        until(format!("{sent} and {received} bytes to be counted"), || {
            self.counted() == expected
        });
    }
}

fn end(mut agent: Killed) {
    signal(&agent.0, "TERM");
    assert!(agent.0.wait().unwrap().success());
}

#[test]
fn a_connection_counts_from_the_first_start_on_and_over_restarts() {
    let mut place = Place::new();
    place.exchange(1000, 2000);
    let agent = place.agent(&["--loopback"]);
    place.exchange(500, 70);
    place.until_counted(500, 70);
    end(agent);
    // While no agent runs.
    place.exchange(30, 4);
    let mut agent = place.agent(&["--loopback"]);
    place.until_counted(530, 74);
    agent.kill();
    place.exchange(1, 2);
    let agent = place.agent(&["--loopback"]);
    place.until_counted(531, 76);
    // It ends.
    place.exchange(8, 9);
    place.connection = None;
    place.until_looked();
    end(agent);
    place.until_counted(539, 85);
}

#[test]
fn loopback_addresses_count_only_if_asked_for() {
    let mut place = Place::new();
    let agent = place.agent(&[]);
    place.exchange(500, 70);
    place.until_looked();
    end(agent);
    assert_eq!(place.counted(), []);
}
