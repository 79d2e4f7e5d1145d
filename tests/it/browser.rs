//! A real browser, without a window, driven through WebDriver.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};

use serde_json::{Value, json};
use thirtyfour::prelude::*;
use thirtyfour::{ChromiumLikeCapabilities, LoggingPrefsLogLevel};

use crate::wait::{DEADLINE, poll_for, until_some};

/// Number of running browsers; it is bounded, since a browser takes a core.
static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// The right to run a browser, until it is dropped.
struct Turn;

impl Turn {
    fn wait() -> Turn {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = ENDED
            .wait_while(running, |running| *running >= cores)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

pub struct Browser {
    driver: WebDriver,
    runtime: tokio::runtime::Runtime,
    chromedriver: Child,
    /// Its profile, and below `downloads` what it saved.
    dir: tempfile::TempDir,
    base: String,
    _turn: Turn,
}

/// Starts chromedriver, and returns it with its port; `None` if it ended.
fn start_driver() -> Option<(Child, u16)> {
    let mut chromedriver = Command::new("chromedriver")
        .arg("--port=0")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a browser is needed: apt-get install chromium chromium-driver");
    let lines = BufReader::new(chromedriver.stdout.take().unwrap()).lines();
    let port = lines.map_while(Result::ok).find_map(|line| {
        let (_, rest) = line.split_once("started successfully on port ")?;
        rest.trim_end_matches('.').parse().ok()
    });
    let Some(port) = port else {
        chromedriver.wait().unwrap();
        return None;
    };
    Some((chromedriver, port))
}

impl Browser {
    /// A browser whose addresses are below `base`.
    pub fn start(base: &str) -> Browser {
        let turn = Turn::wait();
        // It binds one port for IPv4 and IPv6, and ends if another process has the second one.
        let (chromedriver, port) = (0..5).find_map(|_| start_driver()).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let mut options = DesiredCapabilities::chrome();
        let profile = format!("--user-data-dir={}", dir.path().join("profile").display());
        for argument in [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--window-size=1280,900",
            &profile,
        ] {
            options.add_arg(argument).unwrap();
        }
        let level = LoggingPrefsLogLevel::All;
        options.set_browser_log_level(level).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        // The driver's HTTP client has none of its own, as the service's has for object stores.
        let _is_there = rustls::crypto::ring::default_provider().install_default();
        let url = format!("http://127.0.0.1:{port}");
        let driver = runtime.block_on(WebDriver::new(url, options)).unwrap();
        let browser = Browser {
            driver,
            runtime,
            chromedriver,
            dir,
            base: base.to_owned(),
            _turn: turn,
        };
        let downloads = browser.dir.path().join("downloads");
        std::fs::create_dir(&downloads).unwrap();
        browser.cdp(
            "Browser.setDownloadBehavior",
            json!({"behavior": "allow", "downloadPath": downloads}),
        );
        browser
    }

    pub fn cdp(&self, method: &str, parameters: Value) -> Value {
        let cdp = self.driver.cdp();
        self.runtime
            .block_on(cdp.send_raw(method, parameters))
            .unwrap()
    }

    pub fn open(&self, path: &str) {
        let url = format!("{}{path}", self.base);
        self.runtime.block_on(self.driver.goto(url)).unwrap();
    }

    /// Opens the page in a second tab, to which all later calls apply.
    pub fn open_beside(&self, path: &str) {
        self.runtime.block_on(async {
            let tab = self.driver.new_window().await.unwrap();
            self.driver.switch_to_window(tab).await.unwrap();
        });
        self.open(path);
    }

    /// Runs the body of a function in the page, and returns its result.
    pub fn js(&self, body: &str) -> Value {
        let result = self
            .runtime
            .block_on(self.driver.execute(body, Vec::new()))
            .unwrap_or_else(|e| panic!("{e}: {body}"));
        result.json().clone()
    }

    /// Waits until `expression` is true of the page.
    pub fn until(&self, expression: &str) {
        let is_so = || self.js(&format!("return Boolean({expression})")) == true;
        if poll_for(DEADLINE, || is_so().then_some(())).is_none() {
            let text = self.js("return location.href + '\\n' + document.body.innerText");
            panic!("never {expression}: {text}\n{:?}", self.problems());
        }
    }

    pub fn text(&self, css: &str) -> String {
        let text = self.js(&format!(
            "return document.querySelector({css:?}).textContent"
        ));
        text.as_str().unwrap().replace('\u{a0}', " ")
    }

    pub fn texts(&self, css: &str) -> Vec<String> {
        let texts = self.js(&format!(
            "return [...document.querySelectorAll({css:?})].map((e) => e.textContent)"
        ));
        serde_json::from_value(texts).unwrap()
    }

    /// The query string of the address.
    pub fn search(&self) -> String {
        self.js("return location.search").as_str().unwrap().into()
    }

    /// Clicks as a person does: an element that is covered or out of view is an error.
    pub fn click(&self, css: &str) {
        self.runtime.block_on(async {
            let element = self.driver.find(By::Css(css)).await.unwrap();
            element.scroll_into_view().await.unwrap();
            element.click().await.unwrap();
        });
    }

    /// Types into the focused element.
    pub fn keys(&self, keys: &str) {
        let actions = self.driver.action_chain().send_keys(keys);
        self.runtime.block_on(actions.perform()).unwrap();
    }

    /// Presses the mouse button at one point of the window, and releases it at another.
    pub fn drag(&self, from: (i64, i64), to: (i64, i64)) {
        let middle = (i64::midpoint(from.0, to.0), i64::midpoint(from.1, to.1));
        let chain = self.driver.action_chain();
        let actions = chain
            .move_to(from.0, from.1)
            .click_and_hold()
            .move_to(middle.0, middle.1)
            .move_to(to.0, to.1)
            .release();
        self.runtime.block_on(actions.perform()).unwrap();
    }

    /// Moves the mouse to a point of the window.
    pub fn hover(&self, (x, y): (i64, i64)) {
        let actions = self.driver.action_chain().move_to(x, y);
        self.runtime.block_on(actions.perform()).unwrap();
    }

    /// Runs `script` in each page that is opened from now on, before its own scripts.
    pub fn before_each_page(&self, script: &str) {
        self.cdp(
            "Page.addScriptToEvaluateOnNewDocument",
            json!({"source": script}),
        );
    }

    /// The value of `expression`, in which `it` has the modules of the page.
    pub fn modules(&self, expression: &str) -> Value {
        self.js(&format!(
            "return import(document.querySelector('script').src).then((it) => {expression})"
        ))
    }

    /// The downloaded CSV file.
    pub fn downloaded(&self) -> PathBuf {
        self.downloaded_as(".csv")
    }

    /// The downloaded file whose name ends so, which is not empty. The browser first makes an empty one.
    pub fn downloaded_as(&self, end: &str) -> PathBuf {
        until_some("a download", || {
            let entries = std::fs::read_dir(self.dir.path().join("downloads")).unwrap();
            let mut files = entries.map(|entry| entry.unwrap().path());
            let is_it = |file: &PathBuf| {
                let is_named = file.to_str().is_some_and(|name| name.ends_with(end));
                is_named && file.metadata().is_ok_and(|metadata| metadata.len() > 0)
            };
            files.find(is_it)
        })
    }

    pub fn screenshot(&self, path: &Path) {
        let shot = self.driver.screenshot(path);
        self.runtime.block_on(shot).unwrap();
    }

    /// The browser's reports: errors of scripts, violations of the policy.
    pub fn problems(&self) -> Vec<String> {
        let log = self.runtime.block_on(self.driver.browser_log()).unwrap();
        log.into_iter().map(|entry| entry.message).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser, which would outlive its driver.
        let driver = self.driver.clone();
        let _ended = self.runtime.block_on(driver.quit());
        let _ended = self.chromedriver.kill();
        let _ended = self.chromedriver.wait();
    }
}
