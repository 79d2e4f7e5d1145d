//! Real programs: what curl, iperf3, psql and redis-cli move between two hosts is counted to the byte, under their names, in
//! connections of a millisecond and of the test's whole length. A relay before the servers has seen what was moved.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use super::network::{END_TIME, Killed, Network, World, address, traffic_time};
use super::relay::{Relay, listens, sum, web_server};
use crate::daemon::signal;
use crate::support::has_program;
use crate::wait::{DEADLINE, poll_for, until};

const CLIENT: usize = 1;
const SERVER: usize = 2;
const TRAFFIC_SECONDS: u64 = 25;
/// Rounds of short connections, also on a busy machine.
const ROUNDS_MIN: usize = 10;
/// How long the first measurement of iperf3 at its second port takes: more than two looks of the agent.
const FIRST_SECONDS: u64 = 12;
/// In a longer run, the agent may have forgotten which application uses an endpoint, so that short connections are unknown.
const KNOWN_SECONDS: u64 = 600;
/// Between two things that a connection of the whole length does.
const PAUSE: Duration = Duration::from_millis(50);
/// With what iperf3 identifies a measurement, once for each connection.
const COOKIE_BYTES: u64 = 37;

/// A server behind the relay.
struct Relayed {
    /// The name of the server's application, and of its client's.
    dest_app: &'static str,
    src_app: &'static str,
    /// Where the relay listens, and the server, at a loopback address.
    port: u16,
    target: u16,
}

const fn relayed(dest_app: &'static str, src_app: &'static str, port: u16, target: u16) -> Relayed {
    Relayed {
        dest_app,
        src_app,
        port,
        target,
    }
}

const POSTGRES: Relayed = relayed("postgres", "psql", 5432, 15432);
const REDIS: Relayed = relayed("redis", "redis-cli", 6379, 16379);
const WEB_SERVER: Relayed = relayed("web", "curl", 8000, 18000);
/// A server of iperf3 takes one measurement at a time: one for the whole length, the other for the rest.
const IPERF: Relayed = relayed("iperf", "iperf3", 5201, 15201);
const SHORT_IPERF: Relayed = relayed("short-iperf", "iperf3", 5202, 15202);
static ALL: [Relayed; 5] = [POSTGRES, REDIS, WEB_SERVER, IPERF, SHORT_IPERF];

#[test]
fn what_programs_move_is_counted_to_the_byte() {
    let installed = ["curl", "iperf3", "redis-cli", "redis-check-rdb", "ss"].map(has_program);
    let Some(postgres) = postgres_programs() else {
        println!("psql: NOT TESTED, there is no PostgreSQL in /usr/lib/postgresql");
        return;
    };
    if installed.contains(&false) {
        return;
    }
    let Some(network) = Network::new("programs", 2) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let world = World { network, dir };
    let mut apps = format!("address,app\n{}:8080,service\n", address(0));
    for server in &ALL {
        apps += &format!("{}:{},{}\n", address(SERVER), server.port, server.dest_app);
    }
    std::fs::write(world.path("apps"), apps).unwrap();
    for host in [CLIENT, SERVER] {
        let rule = "[[app]]\nname = \"{executable}\"\n";
        std::fs::write(world.path(format!("rules-{host}")), rule).unwrap();
    }
    let mut service = world.service();
    let _servers = servers(&world);
    let _database = Database::start(&world, &postgres);
    let relay = Relay::start(
        &world,
        SERVER,
        ALL.iter().map(|server| (server.port, server.target)),
    );
    // The server's agent has connections, too: those that it has accepted, and those of the relay to loopback addresses.
    let mut agents = [CLIENT, SERVER].map(|host| world.agent(host, &[]));

    let programs = Programs {
        world: &world,
        psql: postgres.join("psql"),
    };
    let long = [
        programs.psql_for_long(),
        programs.redis_cli_for_long(),
        programs.curl_for_long(),
    ];
    let seconds = traffic_time(TRAFFIC_SECONDS).as_secs();
    let (mut iperf, measured) = programs.iperf_for_long(seconds);
    // An application is known by connections that were listed, which all have been then.
    programs.iperf(&["--time", &FIRST_SECONDS.to_string(), "--bitrate", "5M"]);
    until("the connections to be counted", || {
        let counted = world.counted().unwrap_or_default();
        ALL.iter().all(|server| counted.contains_key(&pair(server)))
    });
    let mut rounds = 0_usize;
    while rounds < ROUNDS_MIN || iperf.0.try_wait().unwrap().is_none() {
        rounds += 1;
        programs.psql(&format!("select repeat('x', {})", rounds * 1000));
        programs.redis_cli(&["set", "key", &"x".repeat(rounds * 10)]);
        programs.redis_cli(&["get", "key"]);
        programs.curl(rounds * 1000);
        if rounds.is_multiple_of(5) {
            programs.iperf(&["--bytes", "100K"]);
        }
        if rounds == 7 {
            service.kill();
            service = world.service();
        }
    }
    assert!(iperf.0.wait().unwrap().success());
    world.touch("stop");
    for program in long {
        program.finish();
    }
    let moved = relay.finish(&world);
    std::thread::sleep(END_TIME);
    for agent in &mut agents {
        signal(&agent.0, "TERM");
        assert!(agent.0.wait().unwrap().success());
    }
    // What the service did not take at once is in the spool.
    let _agents = [CLIENT, SERVER].map(|host| world.agent(host, &[]));

    let expected: BTreeMap<_, _> = ALL
        .iter()
        .map(|server| (pair(server), sum(&moved[&server.port])))
        .collect();
    let counted = || {
        let mut counted = world.counted()?;
        if seconds > KNOWN_SECONDS {
            for server in &ALL {
                let unknown = ("unknown".to_owned(), server.dest_app.to_owned());
                let bytes = counted.remove(&unknown).unwrap_or_default();
                let all = counted.entry(pair(server)).or_default();
                *all = sum(&[*all, bytes]);
            }
        }
        Some(counted)
    };
    let is_complete = poll_for(DEADLINE, || (counted()? == expected).then_some(()));
    if is_complete.is_none() {
        assert_eq!(counted().unwrap(), expected, "after {rounds} rounds");
    }
    println!("{rounds} rounds, {expected:?}");
    // The relay has seen as much as iperf3 itself says, and all of the short connections.
    let [sent, _] = sum(&moved[&IPERF.port][1..]);
    let streams = moved[&IPERF.port].len() - 1;
    assert_eq!(
        sent,
        sent_by_iperf(&measured) + COOKIE_BYTES * streams as u64
    );
    for (server, connections) in [
        (POSTGRES, rounds),
        (REDIS, 2 * rounds),
        (WEB_SERVER, rounds),
    ] {
        assert_eq!(moved[&server.port].len(), 1 + connections);
    }
}

fn pair(server: &Relayed) -> (String, String) {
    (server.src_app.to_owned(), server.dest_app.to_owned())
}

/// What the programs print does not matter, only that they succeed.
#[track_caller]
fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// The programs of a PostgreSQL: Debian keeps those of the server out of the PATH.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let programs = versions.flatten().map(|version| version.path().join("bin"));
    programs
        .filter(|programs| programs.join("initdb").exists() && programs.join("psql").exists())
        .max()
}

/// All servers but PostgreSQL.
fn servers(world: &World) -> Vec<Killed> {
    // Debian has the server as another name of this, in a package that starts it.
    let redis_server = world.path("redis-server");
    symlink("/usr/bin/redis-check-rdb", &redis_server).unwrap();
    let mut redis = world.network.command(SERVER, redis_server);
    redis.args(["--bind", "127.0.0.1", "--save", "", "--port"]);
    redis.arg(REDIS.target.to_string());
    redis
        .arg("--dir")
        .arg(world.dir.path())
        .stdout(Stdio::null());
    let iperf = [IPERF, SHORT_IPERF].map(|server| {
        let mut iperf = world.network.command(SERVER, "iperf3");
        iperf.args(["--server", "--bind", "127.0.0.1", "--port"]);
        iperf.arg(server.target.to_string()).stdout(Stdio::null());
        iperf
    });
    let mut commands: Vec<Command> = [redis].into_iter().chain(iperf).collect();
    let mut servers: Vec<Killed> = commands.iter_mut().map(Killed::spawn).collect();
    servers.push(web_server(world, SERVER, WEB_SERVER.target));
    until("the servers to listen", || {
        let others = [REDIS, IPERF, SHORT_IPERF];
        others
            .iter()
            .all(|server| listens(world, SERVER, server.target))
    });
    servers
}

/// PostgreSQL, in a directory of its own.
struct Database {
    server: Killed,
    _dir: tempfile::TempDir,
}

impl Database {
    fn start(world: &World, programs: &Path) -> Database {
        // It refuses to run as root.
        let dir = tempfile::tempdir().unwrap();
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let data = dir.path().join("data");
        let as_nobody = |program: &str| {
            let mut command = world.network.command(SERVER, "setpriv");
            command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}")]);
            command.arg("--clear-groups").arg(programs.join(program));
            command.current_dir(dir.path());
            command
        };
        let mut initdb = as_nobody("initdb");
        initdb.args([
            "--username=test",
            "--auth=trust",
            "--locale=C",
            "--encoding=UTF8",
        ]);
        run(initdb.arg("--no-sync").arg("--pgdata").arg(&data));
        let mut server = as_nobody("postgres");
        let port = POSTGRES.target.to_string();
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            &format!("port={port}"),
        ] {
            server.args(["-c", setting]);
        }
        let log = File::create(world.path("postgres-log")).unwrap();
        let server = Killed::spawn(server.arg("-D").arg(&data).stderr(log));
        until("PostgreSQL to be ready", || {
            let mut is_ready = as_nobody("pg_isready");
            is_ready.args(["--host=127.0.0.1", "--port", &port]);
            is_ready.output().unwrap().status.success()
        });
        Database { server, _dir: dir }
    }
}

impl Drop for Database {
    /// Lets it end by itself: otherwise its shared memory stays.
    fn drop(&mut self) {
        let _it_may_have_ended = Command::new("kill")
            .args(["-INT", &self.server.0.id().to_string()])
            .status();
        let _ended = poll_for(DEADLINE, || self.server.0.try_wait().ok().flatten());
    }
}

/// The user `nobody` of Debian.
const NOBODY: u32 = 65_534;

/// The bytes that it has sent over its data connections, as it says.
fn sent_by_iperf(measured: &Path) -> u64 {
    let measured = std::fs::read_to_string(measured).unwrap();
    let measured: serde_json::Value = serde_json::from_str(&measured).unwrap();
    measured["end"]["sum_sent"]["bytes"].as_u64().unwrap()
}

/// A program with a connection that is open until the file `stop` appears.
struct Long {
    program: Killed,
    /// Gives it something to do.
    input: Option<JoinHandle<()>>,
}

impl Long {
    /// `input` is what the program reads again and again.
    fn start(world: &World, command: &mut Command, input: Option<String>) -> Long {
        let stdin = match input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        };
        let mut program = Killed::spawn(command.stdin(stdin).stdout(Stdio::null()));
        let stop = world.path("stop");
        let input = program.0.stdin.take().zip(input);
        let input = input.map(|(mut to, input)| {
            std::thread::spawn(move || {
                while !stop.exists() && to.write_all(input.as_bytes()).is_ok() {
                    std::thread::sleep(PAUSE);
                }
            })
        });
        Long { program, input }
    }

    #[track_caller]
    fn finish(mut self) {
        if let Some(input) = self.input.take() {
            input.join().unwrap();
        }
        assert!(self.program.0.wait().unwrap().success());
    }
}

/// The clients.
struct Programs<'a> {
    world: &'a World,
    psql: PathBuf,
}

impl Programs<'_> {
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.world.network.command(CLIENT, program)
    }

    fn psql_command(&self) -> Command {
        let mut command = self.command(&self.psql);
        let port = POSTGRES.port.to_string();
        command.args([
            "--no-psqlrc",
            "--quiet",
            "--host",
            &address(SERVER),
            "--port",
            &port,
        ]);
        command.args([
            "--username=test",
            "--dbname=postgres",
            "--set=ON_ERROR_STOP=1",
        ]);
        command
    }

    fn psql_for_long(&self) -> Long {
        let query = "select repeat('y', 10000);\n".to_owned();
        Long::start(self.world, &mut self.psql_command(), Some(query))
    }

    fn psql(&self, query: &str) {
        run(self.psql_command().args(["--command", query]));
    }

    fn redis_command(&self) -> Command {
        let mut command = self.command("redis-cli");
        command.args(["-e", "-h", &address(SERVER), "-p", &REDIS.port.to_string()]);
        command
    }

    fn redis_cli_for_long(&self) -> Long {
        let commands = format!("set long {}\nget long\n", "z".repeat(100));
        Long::start(self.world, &mut self.redis_command(), Some(commands))
    }

    fn redis_cli(&self, arguments: &[&str]) {
        run(self.redis_command().args(arguments));
    }

    fn curl_command(&self, path: &str) -> Command {
        let mut command = self.command("curl");
        let url = format!("http://{}:{}/{path}", address(SERVER), WEB_SERVER.port);
        command.args(["--silent", "--show-error", "--fail", "--noproxy", "*"]);
        command.args(["--output", "/dev/null", &url]);
        command
    }

    fn curl_for_long(&self) -> Long {
        Long::start(self.world, &mut self.curl_command("long"), None)
    }

    fn curl(&self, bytes: usize) {
        run(&mut self.curl_command(&bytes.to_string()));
    }

    fn iperf_command(&self, server: &Relayed) -> Command {
        let mut command = self.command("iperf3");
        command.args([
            "--client",
            &address(SERVER),
            "--port",
            &server.port.to_string(),
        ]);
        command
    }

    /// Two streams for so long. Also returns the file with what iperf3 has measured.
    fn iperf_for_long(&self, seconds: u64) -> (Killed, PathBuf) {
        let measured = self.world.path("iperf.json");
        let mut command = self.iperf_command(&IPERF);
        command.args(["--json", "--parallel", "2", "--bitrate", "20M", "--time"]);
        command.arg(seconds.to_string());
        command.stdout(File::create(&measured).unwrap());
        (Killed::spawn(&mut command), measured)
    }

    fn iperf(&self, arguments: &[&str]) {
        run(self.iperf_command(&SHORT_IPERF).args(arguments));
    }
}
