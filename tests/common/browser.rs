//! A real browser: headless Chromium, driven over its DevTools protocol
//! (chromedevtools.github.io/devtools-protocol).

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use data_encoding::BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;
use tungstenite::Message;
use tungstenite::protocol::WebSocket;

use super::DEADLINE;
use super::system::skipped;

/// Where Debian puts it; `THREADCAST_CHROMIUM` names another.
const CHROMIUM: &str = "/usr/bin/chromium";

/// Headless, silent, alone: nothing but the tests' pages goes over the network, and no page is
/// slowed down for being behind another.
const ARGS: [&str; 13] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--remote-debugging-port=0",
];

/// A browser with a profile of its own. Gone with its profile when this is dropped.
pub struct Browser {
    child: Child,
    /// Of the whole browser: opens pages and ends it.
    devtools: DevTools,
    address: String,
    _profile: TempDir,
}

impl Browser {
    /// `None`, said loudly, where there is no Chromium.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with further arguments, such as `--host-resolver-rules=MAP evil.test 127.0.0.1`.
    pub fn start_with(args: &[&str]) -> Option<Self> {
        let program = std::env::var("THREADCAST_CHROMIUM").unwrap_or(CHROMIUM.to_owned());
        if !Path::new(&program).exists() {
            skipped(&format!("there is no {program}"));
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary directory");
        let child = Command::new(program)
            .args(ARGS)
            .args(args)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Chromium starts");
        // Two lines once it listens: the port, and the browser's own path.
        let file = profile.path().join("DevToolsActivePort");
        let found = || {
            let text = fs::read_to_string(&file).ok()?;
            let (port, path) = text.split_once('\n')?;
            let path = path.trim().to_owned();
            (!path.is_empty()).then(|| (format!("127.0.0.1:{port}"), path))
        };
        let start = Instant::now();
        let (address, path) = loop {
            match found() {
                Some(found) => break found,
                // The first time it reads itself from the disk.
                None => assert!(start.elapsed() < 3 * DEADLINE, "Chromium does not listen"),
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let devtools = DevTools::connect(&address, &path);
        Some(Self {
            child,
            devtools,
            address,
            _profile: profile,
        })
    }

    /// A page in a window of its own, loaded.
    pub fn open(&mut self, url: &str) -> Page {
        let mut page = self.blank();
        page.navigate(url);
        page
    }

    /// An empty page, to be set up before it is sent somewhere.
    pub fn blank(&mut self) -> Page {
        let target = json!({"url": "about:blank", "newWindow": true});
        let target = self.devtools.call("Target.createTarget", target);
        let id = target["targetId"].as_str().expect("an id");
        let mut devtools = DevTools::connect(&self.address, &format!("/devtools/page/{id}"));
        for domain in ["Page", "Runtime", "Log"] {
            devtools.call(&format!("{domain}.enable"), json!({}));
        }
        let focus = json!({"enabled": true});
        devtools.call("Emulation.setFocusEmulationEnabled", focus);
        Page { devtools }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // By itself it ends its helpers and lets go of its profile first.
        self.devtools.send("Browser.close", json!({}));
        let start = Instant::now();
        while start.elapsed() < DEADLINE / 4 && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One page of a browser.
pub struct Page {
    devtools: DevTools,
}

impl Page {
    /// Goes to a page and waits until it is loaded.
    pub fn navigate(&mut self, url: &str) {
        self.devtools.forget("Page.loadEventFired");
        let answer = self.call("Page.navigate", json!({"url": url}));
        assert_eq!(answer["errorText"], Value::Null, "{url}");
        self.devtools.until("Page.loadEventFired");
    }

    /// Evaluates JavaScript; a promise is waited for. Panics with what it throws.
    pub fn eval(&mut self, expression: &str) -> Value {
        let mut answer = self.call(
            "Runtime.evaluate",
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true}),
        );
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression}: {thrown}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true; panics at the deadline with what the page shows.
    pub fn wait(&mut self, expression: &str) {
        let start = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != json!(true) {
            if start.elapsed() > DEADLINE {
                let text = self.eval("document.body.innerText");
                let text = text.as_str().unwrap_or_default();
                let text: String = text.chars().take(4000).collect();
                panic!("not before the deadline: {expression}; the page shows:\n{text}");
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Sets the size of the window in CSS pixels. `touch` also makes it a phone's.
    pub fn viewport(&mut self, width: u32, height: u32, touch: bool) {
        self.call(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}),
        );
        let touch = json!({"enabled": touch});
        self.call("Emulation.setTouchEmulationEnabled", touch);
    }

    /// Sets a media feature, such as `prefers-color-scheme` to `dark`.
    pub fn media(&mut self, name: &str, value: &str) {
        let features = json!({"features": [{"name": name, "value": value}]});
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// Types into what has the focus.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Presses a key by its name in `KeyboardEvent.key`, with `Shift+` before it if need be.
    pub fn press(&mut self, key: &str) {
        let (modifiers, key) = match key.strip_prefix("Shift+") {
            Some(key) => (8, key),
            None => (0, key),
        };
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Tab" => (9, ""),
            "Escape" => (27, ""),
            "Home" => (36, ""),
            "End" => (35, ""),
            "ArrowUp" => (38, ""),
            "ArrowDown" => (40, ""),
            " " => (32, " "),
            "/" => (191, "/"),
            other => panic!("the key {other} has no code here"),
        };
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({
                "type": kind, "key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers,
            });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Writes a PNG of what is to be seen.
    pub fn screenshot(&mut self, file: &Path) {
        let image = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let image = image["data"].as_str().expect("an image");
        let image = BASE64.decode(image.as_bytes()).expect("base64");
        fs::write(file, image).expect("a file");
    }

    /// From now on [`Self::requests`] knows what the page asks for.
    pub fn watch_requests(&mut self) {
        self.call("Network.enable", json!({}));
    }

    /// The addresses that the page has asked for, WebSockets included.
    pub fn requests(&mut self) -> Vec<String> {
        self.happened(|event| match event["method"].as_str() {
            Some("Network.requestWillBeSent") => Some(&event["params"]["request"]["url"]),
            Some("Network.webSocketCreated") => Some(&event["params"]["url"]),
            _ => None,
        })
    }

    /// What went wrong: errors on the console, exceptions nobody caught, what the page's policy
    /// forbade, dialogs. Requests that were answered with an error are none of it.
    pub fn errors(&mut self) -> Vec<String> {
        self.happened(|event| {
            let params = &event["params"];
            match event["method"].as_str() {
                Some("Runtime.exceptionThrown") => Some(&params["exceptionDetails"]),
                Some("Runtime.consoleAPICalled") if params["type"] == "error" => Some(params),
                Some("Log.entryAdded") => Some(&params["entry"])
                    .filter(|entry| entry["level"] == "error" && entry["source"] != "network"),
                Some("Page.javascriptDialogOpening") => Some(params),
                _ => None,
            }
        })
    }

    fn happened(&mut self, found: impl Fn(&Value) -> Option<&Value>) -> Vec<String> {
        // Events come in order: those before this answer are read with it.
        self.eval("0");
        let said = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned);
        let events = self.devtools.events.iter();
        events.filter_map(found).map(said).collect()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.devtools.call(method, params)
    }
}

/// One DevTools connection: calls and answers, and the events between them.
struct DevTools {
    socket: WebSocket<TcpStream>,
    calls: u64,
    events: Vec<Value>,
}

impl DevTools {
    fn connect(address: &str, path: &str) -> Self {
        let stream = TcpStream::connect(address).expect("Chromium accepts");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("nodelay");
        let (socket, _) =
            tungstenite::client(format!("ws://{address}{path}"), stream).expect("a handshake");
        Self {
            socket,
            calls: 0,
            events: Vec::new(),
        }
    }

    /// Whether the call could be sent.
    fn send(&mut self, method: &str, params: Value) -> bool {
        self.calls += 1;
        let call = json!({"id": self.calls, "method": method, "params": params});
        let call = Message::text(call.to_string());
        self.socket.send(call).is_ok()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        assert!(self.send(method, params), "{method}: Chromium is gone");
        loop {
            let mut message = self.read();
            if message["id"] == self.calls {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].take();
            }
            self.keep(message);
        }
    }

    /// Reads until an event has come, if it has not yet.
    fn until(&mut self, method: &str) {
        while self.events.iter().all(|event| event["method"] != method) {
            let message = self.read();
            self.keep(message);
        }
    }

    fn forget(&mut self, method: &str) {
        self.events.retain(|event| event["method"] != method);
    }

    fn keep(&mut self, event: Value) {
        // A page's frames would be most of them, and nobody asks for them.
        let method = event["method"].as_str().unwrap_or_default();
        if !method.starts_with("Network.webSocketFrame") {
            self.events.push(event);
        }
    }

    fn read(&mut self) -> Value {
        loop {
            match self.socket.read() {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).expect("JSON"),
                Ok(_) => {}
                Err(tungstenite::Error::Io(error))
                    if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("no answer from Chromium before the deadline: {error}"),
            }
        }
    }
}
