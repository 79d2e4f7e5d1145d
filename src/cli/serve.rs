//! `flowtally serve`.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use super::welcome;
use crate::config::{LogFormat, MemoryPlan, Serve, Settings};
use crate::daemon::{self, Config};
use crate::http::{AccessFiles, Hosts, TlsFiles};
use crate::query::QueryLimits;
use crate::store::StoreOptions;
use crate::telemetry::{Metrics, log};
use flow::HostName;

/// Exit status after a second signal: the one that a shell reports for a process killed by SIGINT.
const EXIT_SECOND_SIGNAL: i32 = 130;

/// Maximum time for blocking tasks to end when everything is flushed.
const RUNTIME_END_MAX: Duration = Duration::from_secs(2);
/// Maximum number of open connections, if the limit of open files allows it.
const CONNECTIONS_MAX: usize = 4096;
/// A connection may buffer a head of 32 KiB.
const CONNECTIONS_PER_MIB: usize = 8;
/// The files that RocksDB keeps open (`max_open_files`), its logs, and some in reserve.
const FILES_OF_OUR_OWN: usize = 640;

pub(super) fn run(arguments: Serve, settings: &Settings) -> Result<(), String> {
    let allowed = host_names(&arguments.allow_host)?;
    if arguments.print_config {
        return agent::command::write_stdout(settings.to_string().as_bytes());
    }
    let format = match arguments.log_format {
        LogFormat::Auto => log::LogFormat::for_stderr(),
        LogFormat::Text => log::LogFormat::Text,
        LogFormat::Json => log::LogFormat::Json,
    };
    log::start(&arguments.log, format)?;
    let memory = arguments.memory_plan()?;
    let runtime = runtime()?;
    let result = runtime.block_on(serve(arguments, memory, allowed));
    end_runtime(runtime);
    result
}

pub(super) fn runtime() -> Result<Runtime, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.map_err(|e| format!("cannot start: {e}"))
}

/// Waits for the blocking tasks. Scans for aborted responses may still be producing their next chunk, and the database
/// has to be closed before the process exits.
pub(super) fn end_runtime(runtime: Runtime) {
    runtime.shutdown_timeout(RUNTIME_END_MAX);
}

async fn serve(arguments: Serve, memory: MemoryPlan, allowed: Vec<HostName>) -> Result<(), String> {
    let listen = &arguments.listen;
    let listener = bind(listen).await.map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => format!(
            "cannot listen on {listen}: the port is taken; \
             stop what has it, or give --listen another one"
        ),
        _ => {
            format!("cannot listen on {listen}: {e}; give --listen an address of this machine")
        }
    })?;
    let cannot_start = |e: io::Error| format!("cannot start: {e}");
    let mut term = signal(SignalKind::terminate()).map_err(cannot_start)?;
    let mut int = signal(SignalKind::interrupt()).map_err(cannot_start)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(cannot_start)?;
    end_at_second_signal().map_err(cannot_start)?;
    let address = listener.local_addr().map_err(cannot_start)?;
    let access = access_files(&arguments)?;
    if !address.ip().is_loopback() && !arguments.allow_anonymous {
        refuse_anonymous(&access, listen)?;
    }
    let guarded = arguments.allow_anonymous || nothing_guards(&access).is_none();
    let hosts = match address.ip().to_canonical().is_loopback() && !guarded {
        true => Hosts::of_this_machine(allowed),
        false => Hosts::any(),
    };
    let ready = Arc::new(Notify::new());
    if io::stderr().is_terminal() {
        let lines = welcome::lines(address, &arguments);
        let ready = ready.clone();
        tokio::spawn(async move {
            ready.notified().await;
            for line in &lines {
                agent::command::eprint_line(line);
            }
        });
    }
    let (reload_sender, reload) = watch::channel(());
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            reload_sender.send_replace(());
        }
    });
    let config = daemon_config(arguments, memory, access, hosts, reload, ready)?;
    let shutdown = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    daemon::run(listener, config, shutdown)
        .await
        .map_err(|e| e.to_string())?;
    tracing::info!("stopped");
    Ok(())
}

/// The configuration of the daemon that `arguments` describe; `memory`, `access` and `hosts` were made of them before.
pub(super) fn daemon_config(
    arguments: Serve,
    memory: MemoryPlan,
    access: AccessFiles,
    hosts: Hosts,
    reload: watch::Receiver<()>,
    ready: Arc<Notify>,
) -> Result<Config, String> {
    let metrics = Metrics::default();
    let mode = arguments.mode()?;
    let stores_max = mode.stores_max();
    Ok(Config {
        metrics: metrics.clone(),
        access,
        hosts,
        reload,
        ready,
        data_dir: arguments.data_dir.path,
        mode,
        store: StoreOptions {
            durability: arguments.durability.into(),
            flush_interval: arguments.flush_interval,
            idempotency_window: arguments.idempotency_window,
            receipts_bytes_max: u64::from(arguments.idempotency_disk_max) << 20,
            content_window: arguments.content_window,
            import_window: arguments.import_window,
            import_receipts_bytes_max: u64::from(arguments.import_disk_max) << 20,
            retention: arguments.hours.retention()?,
            clock_bounds_age: arguments.hours.ahead_max().is_some(),
            metrics: metrics.clone(),
            disk_reserve_bytes: arguments.disk_reserve.map(|mib| u64::from(mib) << 20),
            tally_bytes_max: memory.tally_bytes_max,
            view_bytes_max: memory.view_bytes_max,
            memtable_bytes: memory.memtable_bytes,
            known_keys_bytes: memory.known_keys_bytes,
            block_cache_bytes: memory.block_cache_bytes,
            ..StoreOptions::default()
        },
        hour_ahead_max: arguments.hours.ahead_max(),
        connections_max: connections_max(arguments.memory_max as usize, stores_max),
        body_bytes_max: memory.body_bytes_max,
        query: QueryLimits {
            memory_bytes_max: memory.query_bytes_max,
            time_max: arguments.query_time_max,
        },
        directory_bytes_max: memory.directory_bytes_max,
        queries_max: memory.queries_max,
        inflight_bytes_max: memory.inflight_bytes_max,
        traffic_pairs_max: arguments.traffic_metrics.map(usize::from),
        shutdown_timeout: arguments.shutdown_timeout,
    })
}

/// Without a host, binds to all addresses: IPv6, which includes IPv4, if the machine has it.
async fn bind(listen: &str) -> io::Result<TcpListener> {
    let Some(port) = listen.strip_prefix(':') else {
        return TcpListener::bind(listen).await;
    };
    match TcpListener::bind(format!("[::]:{port}")).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind(format!("0.0.0.0:{port}")).await
        }
        bound => bound,
    }
}

pub(super) fn access_files(arguments: &Serve) -> Result<AccessFiles, String> {
    let tls = arguments.tls_cert.clone().zip(arguments.tls_key.clone());
    let (cert, key) = (&arguments.tls_cert, &arguments.tls_key);
    if cert.is_some() != key.is_some() || arguments.tls_client_ca.is_some() && cert.is_none() {
        return Err(
            "--tls-cert and --tls-key belong together, and --tls-client-ca needs both".into(),
        );
    }
    Ok(AccessFiles {
        write_tokens: arguments.write_token_file.clone(),
        read_tokens: arguments.read_token_file.clone(),
        node_tokens: arguments.node_token_file(),
        tls: tls.map(|(cert, key)| TlsFiles {
            cert,
            key,
            client_ca: arguments.tls_client_ca.clone(),
        }),
    })
}

/// On an address other than loopback, every client that reaches the port has the permissions that need no token.
fn refuse_anonymous(access: &AccessFiles, listen: &str) -> Result<(), String> {
    let Some(open) = nothing_guards(access) else {
        return Ok(());
    };
    Err(format!(
        "with --listen {listen}, anybody who reaches this machine could {open}, or --tls-client-ca, or --allow-anonymous if that is intended"
    ))
}

fn host_names(given: &[String]) -> Result<Vec<HostName>, String> {
    let name = |name: &String| {
        let parsed = name.trim().parse();
        parsed.map_err(|what| format!("--allow-host has {name:?}: {what}"))
    };
    given.iter().map(name).collect()
}

/// The permissions of every client that reaches the port, and the flags that restrict them.
fn nothing_guards(access: &AccessFiles) -> Option<&'static str> {
    let asks_for_certificates = |tls: &TlsFiles| tls.client_ca.is_some();
    if access.tls.as_ref().is_some_and(asks_for_certificates) {
        return None;
    }
    match (&access.write_tokens, &access.read_tokens) {
        (Some(_), Some(_)) => None,
        (None, Some(_)) => Some("send flows: give --write-token-file"),
        (Some(_), None) => Some("read them: give --read-token-file"),
        (None, None) => {
            Some("send flows and read them: give --write-token-file and --read-token-file")
        }
    }
}

/// Raises the limit of open files as far as possible. Returns the number of connections: as many as this limit allows
/// next to RocksDB's files in this many stores, and as many as the memory allows, since their read buffers may take a
/// quarter of it.
fn connections_max(memory_mib: usize, stores: usize) -> usize {
    let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(1024);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    files
        .saturating_sub(FILES_OF_OUR_OWN * stores)
        .min(CONNECTIONS_PER_MIB * memory_mib)
        .clamp(64, CONNECTIONS_MAX)
}

/// The first signal sets a flag; the second finds it set and ends the process immediately. That is safe at any moment,
/// since the journal has every acknowledged batch.
pub(super) fn end_at_second_signal() -> io::Result<()> {
    let first_came = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_shutdown(
            signal,
            EXIT_SECOND_SIGNAL,
            first_came.clone(),
        )?;
    }
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, first_came.clone())?;
    }
    Ok(())
}
