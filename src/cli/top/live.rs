//! The live view: the terminal, and the events that change it.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, KeyEvent, KeyEventKind};
use signal_hook::iterator::Signals;

use super::query::{Snapshot, TopQuery, Window};
use super::state::{Effect, State};
use super::view::{self, Palette};
use crate::cli::browser;
use agent::client::{Client, ClientError};
use agent::command::signals;

/// The view is redrawn at least this often, since it shows its age; a query that is due waits no longer than this.
const TICK: Duration = Duration::from_millis(250);

/// An event for the view.
enum Event {
    Key(KeyEvent),
    /// The terminal was resized.
    Resized,
    Snapshot(Box<(TopQuery, Result<Snapshot, ClientError>)>),
    Signal(i32),
    /// A thread of the view has ended.
    Broken(String),
}

/// Shows `state` until the user quits or a signal arrives. Returns the signal, if it was one.
pub(super) fn run(state: &mut State, client: Client) -> Result<Option<i32>, String> {
    let (sender, events) = mpsc::channel();
    let (queries, asked) = mpsc::channel();
    // Before the terminal is changed, so that a signal cannot leave it changed.
    let signals = Signals::new(signals::ending()).map_err(|e| e.to_string())?;
    start("signals", &sender, move |sender| watch(signals, sender))?;
    start("client", &sender, move |sender| {
        ask(&client, &asked, sender)
    })?;
    // Restores the terminal after a panic, too.
    let terminal = ratatui::try_init();
    let ended = terminal.map_err(|e| e.to_string()).and_then(|terminal| {
        start("keys", &sender, read_keys)?;
        show(terminal, state, &queries, &events)
    });
    let restored = ratatui::try_restore().map_err(|e| format!("the terminal is not restored: {e}"));
    let ended = ended?;
    restored.map(|()| ended)
}

fn show(
    mut terminal: DefaultTerminal,
    state: &mut State,
    queries: &Sender<TopQuery>,
    events: &Receiver<Event>,
) -> Result<Option<i32>, String> {
    let palette = Palette::of_environment();
    loop {
        let now = Instant::now();
        let area = terminal.size().map_err(|e| e.to_string())?;
        state.fit(view::rows_on_screen(area.height), now);
        if let Some(query) = state.next_query(now) {
            queries.send(query).map_err(|e| e.to_string())?;
        }
        let drawn = terminal.draw(|frame| view::draw(frame, state, palette, now));
        drawn.map_err(|e| format!("cannot write to the terminal: {e}"))?;
        match events.recv_timeout(TICK) {
            Ok(Event::Key(key)) => match state.press(key, Instant::now()) {
                Effect::Done => (),
                Effect::Quit => return Ok(None),
                Effect::Open(url) => state.notice = Some(open(&url)),
            },
            Ok(Event::Snapshot(answered)) => {
                let (query, snapshot) = *answered;
                state.receive(&query, snapshot, Instant::now());
                if let Some(why) = state.hopeless.take() {
                    return Err(why);
                }
            }
            Ok(Event::Signal(signal)) => return Ok(Some(signal)),
            Ok(Event::Broken(why)) => return Err(why),
            Ok(Event::Resized) | Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => {
                return Err("an event channel is closed; this is a bug".into());
            }
        }
    }
}

/// Opens `url` in a browser, if there is one, and returns what to tell the user.
fn open(url: &str) -> String {
    match browser::has_desktop() {
        true => browser::open(url).map_or_else(|why| why, |()| format!("opened {url}")),
        false => format!("there is no desktop; the page is {url}"),
    }
}

/// Spawns a thread. When it ends, even by a panic, so does the view.
fn start(
    name: &'static str,
    sender: &Sender<Event>,
    body: impl FnOnce(&Sender<Event>) -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    let sender = sender.clone();
    let guarded = move || {
        let end = EndNotice(&sender, name);
        if let Err(why) = body(&sender) {
            let _it_has_ended = sender.send(Event::Broken(why));
        }
        drop(end);
    };
    let thread = thread::Builder::new().name(name.into()).spawn(guarded);
    thread.map(drop).map_err(|e| e.to_string())
}

/// Sends a message when it is dropped: the thread has ended.
struct EndNotice<'a>(&'a Sender<Event>, &'static str);

impl Drop for EndNotice<'_> {
    fn drop(&mut self) {
        let why = format!("the thread {} has ended", self.1);
        let _it_has_ended = self.0.send(Event::Broken(why));
    }
}

fn watch(mut signals: Signals, sender: &Sender<Event>) -> Result<(), String> {
    for signal in signals.forever() {
        sender
            .send(Event::Signal(signal))
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn read_keys(sender: &Sender<Event>) -> Result<(), String> {
    loop {
        let input = event::read().map_err(|e| format!("cannot read keys: {e}"))?;
        let event = match input {
            event::Event::Key(key) if key.kind != KeyEventKind::Release => Event::Key(key),
            event::Event::Resize(..) => Event::Resized,
            _ => continue,
        };
        sender.send(event).map_err(|e| e.to_string())?;
    }
}

fn ask(
    client: &Client,
    queries: &Receiver<TopQuery>,
    sender: &Sender<Event>,
) -> Result<(), String> {
    let mut window = Window::default();
    for query in queries {
        let snapshot = query.ask(client, &mut window);
        let event = Event::Snapshot(Box::new((query, snapshot)));
        sender.send(event).map_err(|e| e.to_string())?;
    }
    Ok(())
}
