//! The live view: the terminal, and the events that change it.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use signal_hook::iterator::Signals;

use super::question::{Answer, Question, Window};
use super::state::State;
use super::view::{self, Palette};
use agent::client::{Client, ClientError};
use agent::command::signals;

/// The view is redrawn at least this often, since it shows its age; a query that is due waits no longer than this.
const TICK: Duration = Duration::from_millis(250);

/// An event for the view.
enum Message {
    Key(KeyEvent),
    /// The terminal was resized.
    Resized,
    Answer(Box<(Question, Result<Answer, ClientError>)>),
    Signal(i32),
    /// A thread of the view has ended.
    Broken(String),
}

/// Shows `state` until the user quits or a signal arrives. Returns the signal, if it was one.
pub(super) fn run(state: &mut State, client: Client) -> Result<Option<i32>, String> {
    let (sender, messages) = mpsc::channel();
    let (questions, asked) = mpsc::channel();
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
        show(terminal, state, &questions, &messages)
    });
    let restored = ratatui::try_restore().map_err(|e| format!("the terminal is not restored: {e}"));
    let ended = ended?;
    restored.map(|()| ended)
}

fn show(
    mut terminal: DefaultTerminal,
    state: &mut State,
    questions: &Sender<Question>,
    messages: &Receiver<Message>,
) -> Result<Option<i32>, String> {
    let palette = Palette::of_environment();
    loop {
        let now = Instant::now();
        let area = terminal.size().map_err(|e| e.to_string())?;
        state.fit(view::rows_on_screen(area.height), now);
        if let Some(question) = state.next_question(now) {
            questions.send(question).map_err(|e| e.to_string())?;
        }
        let drawn = terminal.draw(|frame| view::draw(frame, state, palette, now));
        drawn.map_err(|e| format!("cannot write to the terminal: {e}"))?;
        match messages.recv_timeout(TICK) {
            Ok(Message::Key(key)) => {
                if !state.press(key, Instant::now()) {
                    return Ok(None);
                }
            }
            Ok(Message::Answer(answered)) => {
                let (question, answer) = *answered;
                state.receive(&question, answer, Instant::now());
                if let Some(why) = state.hopeless.take() {
                    return Err(why);
                }
            }
            Ok(Message::Signal(signal)) => return Ok(Some(signal)),
            Ok(Message::Broken(why)) => return Err(why),
            Ok(Message::Resized) | Err(RecvTimeoutError::Timeout) => (),
            Err(RecvTimeoutError::Disconnected) => return Err("it broke".into()),
        }
    }
}

/// Spawns a thread. When it ends, even by a panic, so does the view.
fn start(
    name: &'static str,
    sender: &Sender<Message>,
    body: impl FnOnce(&Sender<Message>) -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    let sender = sender.clone();
    let guarded = move || {
        let end = End(&sender, name);
        if let Err(why) = body(&sender) {
            let _it_has_ended = sender.send(Message::Broken(why));
        }
        drop(end);
    };
    let thread = thread::Builder::new().name(name.into()).spawn(guarded);
    thread.map(drop).map_err(|e| e.to_string())
}

/// Sends a message when it is dropped: the thread has ended.
struct End<'a>(&'a Sender<Message>, &'static str);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let why = format!("the thread {} has ended", self.1);
        let _it_has_ended = self.0.send(Message::Broken(why));
    }
}

fn watch(mut signals: Signals, sender: &Sender<Message>) -> Result<(), String> {
    for signal in signals.forever() {
        sender
            .send(Message::Signal(signal))
            .map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn read_keys(sender: &Sender<Message>) -> Result<(), String> {
    loop {
        let event = event::read().map_err(|e| format!("cannot read keys: {e}"))?;
        let message = match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => Message::Key(key),
            Event::Resize(..) => Message::Resized,
            _ => continue,
        };
        sender.send(message).map_err(|e| e.to_string())?;
    }
}

fn ask(
    client: &Client,
    questions: &Receiver<Question>,
    sender: &Sender<Message>,
) -> Result<(), String> {
    let mut window = Window::default();
    for question in questions {
        let answer = question.ask(client, &mut window);
        let message = Message::Answer(Box::new((question, answer)));
        sender.send(message).map_err(|e| e.to_string())?;
    }
    Ok(())
}
