//! `flowtally demo`: a service of its own in a temporary directory, with the flows of a made-up shop.

mod dir;
mod live;
mod shop;

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread;

use signal_hook::iterator::Signals;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::dir::DemoDir;
use self::shop::{Flow, HOUR_MS, Shop};
use super::{browser, serve};
use crate::config::{Demo, Serve};
use crate::daemon;
use crate::http::Hosts;
use crate::store::{Durability, Store, StoreError, StoreOptions};
use crate::telemetry::log;
use agent::client::{Client, Server};
use agent::command::{eprint_line, print_result, signals};
use agent::units::hour_start;
use flow::{Batch, BatchBuilder, Counters, Hour};

/// Only what goes wrong is logged.
const LOG: &str = "warn";
/// In MiB.
const MEMORY_MAX: &str = "256";
/// Time of the flows in one batch of the fill.
const FILL_MS: u64 = 24 * HOUR_MS;

pub(super) fn run(arguments: &Demo) -> Result<(), String> {
    log::start(LOG, log::LogFormat::for_stderr())?;
    // Before there is anything to remove.
    let stop = stop_at_signal().map_err(|e| format!("cannot start: {e}"))?;
    let dir = DemoDir::create().map_err(|e| {
        let parent = std::env::temp_dir();
        format!(
            "cannot create a directory in {}: {e}; set TMPDIR to one that can be written",
            parent.display()
        )
    })?;
    dir.remove_dead();
    let ended = fill_and_serve(arguments, &dir, &stop);
    let path = dir.path().display().to_string();
    let removed = dir.remove();
    ended?;
    removed.map_err(|e| format!("cannot remove {path}: {e}"))
}

/// Cancelled at the first signal. A second one ends the process immediately; the next demo removes what is left.
fn stop_at_signal() -> io::Result<CancellationToken> {
    serve::end_at_second_signal()?;
    let mut signals = Signals::new(signals::ending())?;
    let stop = CancellationToken::new();
    let cancel = stop.clone();
    let wait = move || {
        if signals.forever().next().is_some() {
            cancel.cancel();
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(stop)
}

fn fill_and_serve(arguments: &Demo, dir: &DemoDir, stop: &CancellationToken) -> Result<(), String> {
    let now = live::now_ms();
    let hour = u32::try_from(now / HOUR_MS).map_err(|_| "the clock is wrong; set it")?;
    let shop = Shop::new(hour, arguments.days);
    fill(&dir.db(), &shop, now, stop).map_err(|e| e.to_string())?;
    if stop.is_cancelled() {
        return Ok(());
    }
    let flags = [
        "--data-dir",
        "--durability",
        "os",
        "--memory-max",
        MEMORY_MAX,
    ];
    let mut flags = flags.map(OsString::from).to_vec();
    flags.insert(1, dir.db().into_os_string());
    let service = Serve::from_arguments_alone(flags).map_err(|e| e.to_string())?;
    let runtime = serve::runtime()?;
    let ended = runtime.block_on(serve_live(arguments, service, shop, now, stop));
    serve::end_runtime(runtime);
    ended
}

/// Writes the shop's flows before `now` into a new data directory.
fn fill(db: &Path, shop: &Shop, now: u64, stop: &CancellationToken) -> Result<(), StoreError> {
    let options = StoreOptions {
        durability: Durability::Os,
        ..StoreOptions::for_offline_command()
    };
    let (store, _) = Store::open(db, options)?;
    let mut from = shop.begins_at();
    while from < now && !stop.is_cancelled() {
        let to = now.min(from + FILL_MS);
        store.commit(vec![batch(&shop.flows(from, to))])?;
        from = to;
    }
    store.flush()
}

fn batch(flows: &[Flow]) -> Batch {
    let mut builder = BatchBuilder::with_capacity(0);
    for flow in flows {
        let names = [flow.src_app, flow.dest_app, flow.vpc_id].map(str::as_bytes);
        let counters = Counters {
            tx: flow.bytes_tx,
            rx: flow.bytes_rx,
        };
        if let Some(hour) = Hour::new(flow.hour.into()) {
            builder.push(hour, names, counters);
        }
    }
    builder.finish()
}

/// Runs the service, and sends it the shop's flows from `filled` on, until `stop`.
async fn serve_live(
    arguments: &Demo,
    service: Serve,
    shop: Shop,
    filled: u64,
    stop: &CancellationToken,
) -> Result<(), String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    let listener = TcpListener::bind(address);
    let listener = listener.await.map_err(|e| {
        format!("cannot listen on {address}: {e}; without --port, it takes a free one")
    })?;
    let address = listener.local_addr();
    let address = address.map_err(|e| format!("cannot start: {e}"))?;
    let ready = Arc::new(Notify::new());
    let (_never_reloads, reload) = watch::channel(());
    let memory = service.memory_plan()?;
    let access = serve::access_files(&service)?;
    let hosts = Hosts::of_this_machine(Vec::new());
    let config = serve::daemon_config(service, memory, access, hosts, reload, ready.clone())?;
    let url = format!("http://{address}");
    let server = Server {
        url: url.clone(),
        ..Server::default()
    };
    let client = Client::new(&server).map_err(|e| e.to_string())?;
    let (demo, of_live) = (arguments.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = ready.notified() => {}
            () = of_live.cancelled() => return,
        }
        welcome(&demo, &shop, &url);
        live::send(client, Arc::new(shop), filled, of_live).await;
    });
    daemon::run(listener, config, stop.clone().cancelled_owned())
        .await
        .map_err(|e| e.to_string())
}

/// Says where the page is and what there is to see, and opens it.
fn welcome(arguments: &Demo, shop: &Shop, url: &str) {
    let days = match arguments.days {
        1 => "a day".to_owned(),
        days => format!("{days} days"),
    };
    print_result(&format!(
        "{days} of a made-up shop, and more every two seconds. Ctrl-C ends it and removes its data."
    ));
    print_result(&format!("the page       {url}/"));
    print_result(&format!("in a terminal  flowtally top --url {url}"));
    let hours = arguments.days * 24;
    for story in shop.stories() {
        let at = hour_start(story.hour.into()).unwrap_or_else(|| story.hour.to_string());
        let view = format!("{url}/?last={hours}&{}", story.filters);
        print_result(&format!("{at} UTC, {}: {view}", story.what));
    }
    if !arguments.no_browser
        && browser::has_desktop()
        && let Err(why) = browser::open(&format!("{url}/"))
    {
        eprint_line(&format!("flowtally: {why}"));
    }
}
