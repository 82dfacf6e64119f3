//! What a person with a browser sees, in a real one.

mod common;
#[path = "browser/door.rs"]
mod door;

use std::net::SocketAddr;
use std::path::Path;

use common::browser::{Browser, Page};
use common::tokens::{Tokens, bearer};
use common::{Program, TestServer, Ws, eventually};
use door::Door;
use serde_json::json;
use threadcast::access::{AllowedOrigin, Scope};

/// The texts of the messages in the page.
const TEXTS: &str = "Array.from(document.querySelectorAll('#log .text'), (it) => it.textContent)";

/// Their ids.
const IDS: &str = "Array.from(document.querySelectorAll('#log .row'), (it) => it.messageId)";

/// The marks between them.
const MARKS: &str =
    "Array.from(document.querySelectorAll('#log .between'), (it) => it.textContent)";

/// Whether everything that was missed is there and what comes now comes at once.
const LIVE: &str = "document.getElementById('state-text').textContent.startsWith('Live')";

fn url(address: SocketAddr, fragment: &str) -> String {
    format!("http://{address}/#{fragment}")
}

/// A page with an open channel or feed, live.
fn open(browser: &mut Browser, address: SocketAddr, fragment: &str) -> Page {
    let mut page = browser.open(&url(address, fragment));
    page.wait(LIVE);
    page
}

fn ids(page: &mut Page) -> Vec<u64> {
    serde_json::from_value(page.eval(IDS)).expect("numbers")
}

fn text_of(page: &mut Page, id: &str) -> String {
    let text = page.eval(&format!("document.getElementById('{id}').textContent"));
    text.as_str().expect("text").to_owned()
}

/// What one writes into the box and sends.
fn write(page: &mut Page, text: &str) {
    page.eval("document.getElementById('content').focus()");
    page.type_text(text);
    page.press("Enter");
}

#[test]
fn a_browser_gets_the_console_and_curl_the_commands() {
    let server = TestServer::start();
    let mut http = server.http();
    let accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let page = http.request("GET", "/", &[("Accept", accept)], b"");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    assert!(page.body.len() < 60 << 10, "{} bytes", page.body.len());
    for (name, value) in [
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-cache"),
        ("Vary", "Accept"),
    ] {
        assert_eq!(page.header(name), Some(value), "{name}");
    }
    let policy = page.header("Content-Security-Policy").expect("a policy");
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "frame-ancestors 'none'",
        "connect-src 'self' ws://localhost wss://localhost",
    ] {
        assert!(policy.contains(part), "no {part} in {policy}");
    }
    assert!(
        !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );

    let etag = page.header("ETag").expect("a tag");
    let known = [("Accept", accept), ("If-None-Match", etag)];
    let again = http.request("GET", "/", &known, b"");
    assert_eq!((again.status, again.body.len()), (304, 0));
    for accept in ["*/*", "application/json", "text/plain, */*;q=0.1"] {
        let text = http.request("GET", "/", &[("Accept", accept)], b"");
        assert!(text.text().contains("curl -X POST"), "{accept}");
        assert_eq!(text.header("Vary"), Some("Accept"));
    }
}

#[test]
fn a_host_cannot_widen_the_policy() {
    // Otherwise the door refuses most of them.
    let server = TestServer::start_with(|config| config.allow_origins = vec![AllowedOrigin::Any]);
    for character in '!'..='~' {
        let host = format!("a{character}b");
        let mut http = server.http();
        http.send(format!(
            "GET / HTTP/1.1\r\nHost: {host}\r\nAccept: text/html\r\n\r\n"
        ));
        let answer = http.response(false);
        if answer.status == 400 {
            continue;
        }
        let policy = answer.header("Content-Security-Policy").expect("a policy");
        let is_plain = character.is_ascii_alphanumeric() || ".:-_[]".contains(character);
        let end = match is_plain {
            true => format!("; connect-src 'self' ws://{host} wss://{host}"),
            false => "; connect-src 'self'".to_owned(),
        };
        assert!(policy.ends_with(&end), "{host}: {policy}");
    }
}

#[test]
fn what_one_page_sends_the_other_shows() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start();
    server.publish("lab", "from before");
    let mut ada = open(&mut browser, server.address, "channel=lab");
    let mut bob = open(&mut browser, server.address, "channel=lab");
    ada.wait("document.querySelectorAll('#log .row').length === 1");
    assert_eq!(ada.eval(TEXTS), json!(["from before"]));
    ada.eval("document.getElementById('author').focus()");
    ada.type_text("ada");
    ada.eval("document.getElementById('lane').focus()");
    ada.type_text("llm");
    write(&mut ada, "hello from ada");
    ada.wait("document.getElementById('sent').textContent.startsWith('Stored as #2 ')");
    for page in [&mut ada, &mut bob] {
        page.wait("document.querySelectorAll('#log .row').length === 2");
        assert_eq!(page.eval(TEXTS), json!(["from before", "hello from ada"]));
        let last = "document.querySelector('#log .row:last-child')";
        assert_eq!(
            page.eval(&format!("{last}.querySelector('.author').textContent")),
            "ada"
        );
        assert_eq!(
            page.eval(&format!("{last}.querySelector('.chip').textContent")),
            "llm"
        );
        page.wait(
            "document.getElementById('channel-facts').textContent === '2 messages · 2 subscribers'",
        );
        assert_eq!(page.errors(), [""; 0]);
    }
    // The name is remembered by the browser, and other publishers are shown, too.
    let mut again = open(&mut browser, server.address, "channel=lab");
    assert_eq!(again.eval("document.getElementById('author').value"), "ada");
    let body = json!({
        "channel_id": "lab", "author": "bot", "content": "42", "provider": "openai", "token_count": 7,
    });
    assert_eq!(server.http().post_json("/api/messages", &body).status, 200);
    bob.wait("document.querySelectorAll('#log .row').length === 3");
    let chips = "Array.from(document.querySelectorAll('#log .row:last-child .chip'), (it) => it.textContent)";
    assert_eq!(bob.eval(chips), json!(["openai", "7 tokens"]));
}

#[test]
fn an_error_is_told_in_words_and_the_text_comes_back() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start_with(|config| config.limits.max_body_bytes = 1000);
    let mut page = open(&mut browser, server.address, "channel=lab");
    let long = "x".repeat(1100);
    write(&mut page, &long);
    page.wait("document.getElementById('sent').classList.contains('wrong')");
    page.eval("document.getElementById('content').value = 'short'");
    write(&mut page, "er");
    page.wait("document.querySelectorAll('#log .row').length === 1");
    assert_eq!(ids(&mut page), [1]);
}

/// What a page has seen, while the program behind the door is away and comes back.
struct Absence {
    door: Door,
    program: Program,
    page: Page,
    _browser: Browser,
}

impl Absence {
    fn start(database: &Path) -> Option<Self> {
        let mut browser = Browser::start()?;
        let program = Program::start(database, &[]);
        let door = Door::to(program.address);
        let mut http = program.http();
        for number in 0..10 {
            http.publish("lab", &format!("before {number}"));
        }
        let mut page = open(&mut browser, door.address, "channel=lab");
        page.wait("document.querySelectorAll('#log .row').length === 10");
        assert_eq!(ids(&mut page), (1..=10).collect::<Vec<u64>>());
        door.orders(|orders| orders.server = None);
        Some(Self {
            door,
            program,
            page,
            _browser: browser,
        })
    }

    /// The program is killed and another one begins; the page does not see it yet.
    fn restart(&mut self, database: &Path, args: &[&str]) {
        self.program.kill();
        self.page
            .wait("document.getElementById('state').dataset.phase === 'waiting'");
        self.program = Program::start(database, args);
    }

    fn let_in(&mut self) {
        let address = self.program.address;
        self.door.orders(|orders| orders.server = Some(address));
        self.page.wait(LIVE);
    }
}

#[test]
fn after_a_restart_a_page_has_everything_once_and_in_order() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("test.db");
    let Some(mut absence) = Absence::start(&database) else {
        return;
    };
    absence.restart(&database, &[]);
    let mut http = absence.program.http();
    // More than a page that begins anew would show.
    for number in 0..390 {
        http.publish(if number % 3 == 0 { "other" } else { "lab" }, "meanwhile");
    }
    absence.let_in();
    http.publish("lab", "after");
    let page = &mut absence.page;
    page.wait("document.querySelectorAll('#log .row').length === 271");
    let missed = (11..=400).filter(|id| (id - 11) % 3 != 0);
    let all: Vec<u64> = (1..=10).chain(missed).chain([401]).collect();
    assert_eq!(ids(page), all);
    let marks = page.eval(MARKS);
    let mark = marks[0].as_str().expect("a mark");
    assert!(mark.starts_with("260 messages caught up"), "{marks}");
    assert_eq!(marks.as_array().map(Vec::len), Some(1));
    let at = "Array.from(document.getElementById('log').children).findIndex((it) => it.matches('.between'))";
    assert_eq!(page.eval(at), 270);
}

#[test]
fn what_is_no_longer_kept_leaves_a_mark() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = dir.path().join("test.db");
    let Some(mut absence) = Absence::start(&database) else {
        return;
    };
    absence.restart(&database, &["--keep-messages", "20"]);
    let mut http = absence.program.http();
    for _ in 0..100 {
        http.publish("lab", "meanwhile");
    }
    eventually("the others are gone", || {
        let kept = http.get("/api/messages?since=0&limit=1000").json();
        kept["messages"].as_array().map(Vec::len) == Some(20)
    });
    absence.let_in();
    let page = &mut absence.page;
    page.wait("document.querySelectorAll('#log .row').length === 30");
    assert_eq!(ids(page), (1..=10).chain(91..=110).collect::<Vec<u64>>());
    let gap = "Gap: between #10 and #91 messages are no longer kept";
    assert_eq!(page.eval(MARKS)[0], gap);
    let before = "document.querySelector('#log .gap').previousElementSibling.messageId";
    assert_eq!(page.eval(before), 10);
}

#[test]
fn another_history_is_shown_from_its_start_behind_a_mark() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(mut absence) = Absence::start(&dir.path().join("test.db")) else {
        return;
    };
    absence.restart(&dir.path().join("new.db"), &[]);
    absence.program.http().publish("lab", "new");
    absence.let_in();
    let page = &mut absence.page;
    page.wait("document.querySelectorAll('#log .row').length === 1");
    assert_eq!(page.eval(TEXTS), json!(["new"]));
    let marks = page.eval(MARKS);
    let mark = marks[0].as_str().expect("a mark");
    assert!(
        mark.starts_with("Gap: the server does not know message #10"),
        "{marks}"
    );
    absence.program.http().publish("lab", "newer");
    page.wait("document.querySelectorAll('#log .row').length === 2");
}

#[test]
fn hostile_content_is_text() {
    let Some(mut browser) = Browser::start_with(&["--host-resolver-rules=MAP evil.test 127.0.0.1"])
    else {
        return;
    };
    let server = TestServer::start();
    let image = "<img src=http://evil.test/x onerror=alert(1)>";
    let contents = [
        image,
        "</script><script>alert(2)</script></style><style>*{display:none}",
        "left \u{202e}right to left\u{202c} left",
        &"long".repeat(25 << 10),
        "nul \u{0} escape \u{1b}[31m bell \u{7} delete \u{7f}",
        "👩‍👩‍👧‍👦 שלום",
        r#"{"type":"message","data":{"id":99}}"#,
        "javascript:alert(3) ${alert(4)} &lt;b&gt; <!-- ]]>",
        "two\nlines",
    ];
    let mut http = server.http();
    for content in contents {
        let body = json!({
            "channel_id": image, "author": format!("{image}\u{202e}"), "content": content,
            "lane": image, "provider": "</bdi>",
        });
        assert_eq!(http.post_json("/api/messages", &body).status, 200);
    }
    let mut page = browser.blank();
    page.watch_requests();
    page.eval("document.title = 'blank'");
    let fragment = "channel=%3Cimg%20src%3Dhttp%3A%2F%2Fevil.test%2Fx%20onerror%3Dalert(1)%3E";
    page.navigate(&url(server.address, fragment));
    page.wait(LIVE);
    page.wait(&format!(
        "document.querySelectorAll('#log .row').length === {}",
        contents.len()
    ));
    let texts = page.eval(TEXTS);
    for (number, content) in contents.iter().enumerate() {
        let shown = texts[number].as_str().expect("text");
        match number {
            3 => assert!(shown.ends_with("… Show all 102,400 characters"), "{shown}"),
            4 => assert_eq!(shown, "nul ␀ escape ␛[31m bell ␇ delete ␡"),
            _ => assert_eq!(shown, *content),
        }
    }
    page.eval("document.querySelector('#log .text button').click()");
    page.wait("document.querySelectorAll('#log .text')[3].textContent.length === 102400");
    assert_eq!(text_of(&mut page, "channel-name"), image);
    page.wait("document.querySelector('#channels bdi')");
    assert_eq!(
        page.eval("document.querySelector('#channels bdi').textContent"),
        image
    );

    // A state, too, its keys included.
    let state = json!({image: [image, {"__proto__": image, "constructor": null}]});
    http.put_state("board", &state.to_string());
    page.eval("location.hash = 'feed=board'");
    page.wait("document.querySelectorAll('#tree .key').length === 5");
    assert_eq!(
        page.eval("document.querySelector('#tree .string').textContent"),
        json!(image).to_string()
    );
    http.put_state("board", &json!({image: image, "new": image}).to_string());
    page.wait("document.querySelectorAll('#tree .key').length === 2");

    assert_eq!(page.eval("document.images.length"), 0);
    assert_eq!(page.eval("document.scripts.length"), 1);
    assert_eq!(page.errors(), [""; 0]);
    let own = [
        format!("http://{}/", server.address),
        format!("ws://{}/", server.address),
    ];
    let requests = page.requests();
    assert!(requests.len() > 3, "{requests:?}");
    for request in requests {
        let is_own = own.iter().any(|own| request.starts_with(own));
        assert!(is_own || request.starts_with("data:image/svg"), "{request}");
    }
}

#[test]
fn on_a_narrow_screen_nothing_is_beside_it() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start();
    let mut http = server.http();
    let word = "w".repeat(500);
    let body = json!({
        "channel_id": "w".repeat(128), "author": word, "content": word, "lane": word, "provider": word,
        "token_count": 1_000_000,
    });
    assert_eq!(http.post_json("/api/messages", &body).status, 200);
    http.put_state("board", &json!({&word: {&word: [word]}}).to_string());
    let mut page = browser.blank();
    page.viewport(360, 640, true);
    for fragment in [
        String::new(),
        format!("channel={}", "w".repeat(128)),
        "feed=board".to_owned(),
    ] {
        page.navigate("about:blank");
        page.navigate(&url(server.address, &fragment));
        page.wait("document.querySelector('#channels li')");
        page.wait("document.querySelector('#facts dd')");
        page.wait("document.getElementById('state').dataset.phase === 'live'");
        for panel in ["lists", "stream", "activity"] {
            page.eval(&format!(
                "document.querySelector('[data-show={panel}]').click()"
            ));
            let visible = format!("document.getElementById('{panel}').offsetParent !== null");
            assert_eq!(page.eval(&visible), true, "{panel}");
            let widths = "[document.documentElement, document.getElementById('lists'), \
                          document.getElementById('activity'), document.getElementById('scroller'), \
                          document.getElementById('tree'), document.getElementById('welcome')] \
                          .filter((it) => it.scrollWidth > it.clientWidth).map((it) => it.id)";
            let wide = page.eval(widths);
            assert_eq!(wide, json!([]), "{fragment} {panel}");
        }
    }
}

#[test]
fn a_state_is_shown_with_what_changed_in_it() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start();
    let mut http = server.http();
    http.put_state("board", r#"{"temperature":21.50,"door":"shut","jobs":[{"id":1},{"id":2}],"big":12345678901234567890}"#);
    let mut page = open(&mut browser, server.address, "feed=board");
    page.wait("document.querySelectorAll('#tree .key').length === 8");
    let values = "Array.from(document.querySelectorAll('#tree :is(.number, .string)'), (it) => it.textContent)";
    let expected = json!(["21.50", "\"shut\"", "1", "2", "12345678901234567890"]);
    assert_eq!(page.eval(values), expected);
    page.wait("document.getElementById('feed-facts').textContent === 'rev 1 · 1 subscriber'");

    // What is folded stays folded, and says that something in it changed.
    page.eval("document.querySelectorAll('#tree details')[1].open = false");
    http.put_state(
        "board",
        r#"{"temperature":22,"jobs":[{"id":1},{"id":3}],"big":12345678901234567891,"new":null}"#,
    );
    page.wait("document.getElementById('feed-facts').textContent.startsWith('rev 2 ')");
    let changed = "Array.from(document.querySelectorAll('#tree .changed')).filter((it) => it.checkVisibility()).map((it) => it.textContent)";
    assert_eq!(
        page.eval(changed),
        json!([
            "temperature: 22",
            "jobs: [2]",
            "big: 12345678901234567891",
            "new: null"
        ])
    );
    assert_eq!(
        page.eval("document.querySelectorAll('#tree details')[1].open"),
        false
    );
    let told = text_of(&mut page, "feed-change");
    assert_eq!(
        told,
        "Changed: temperature 21.50 → 22, jobs.1.id 2 → 3, big 12345678901234567890 → 12345678901234567891, and 2 more"
    );
    page.wait("!document.querySelector('#tree .changed')");
    assert_eq!(page.errors(), [""; 0]);
}

#[test]
fn everything_can_be_done_with_the_keyboard() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start();
    server.publish("other", "x");
    let mut page = browser.open(&url(server.address, ""));
    page.viewport(1280, 800, false);
    page.wait("document.querySelector('#channels li')");
    page.press("/");
    assert_eq!(page.eval("document.activeElement.id"), "find");
    page.type_text("lab");
    page.wait("document.getElementById('channels-note').textContent !== ''");
    page.press("Enter");
    page.wait(LIVE);
    assert_eq!(page.eval("location.hash"), "#channel=lab");
    assert_eq!(page.eval("document.activeElement.id"), "content");
    page.type_text("one");
    page.press("Shift+Enter");
    page.type_text("two");
    page.press("Enter");
    page.wait("document.querySelectorAll('#log .row').length === 1");
    assert_eq!(page.eval(TEXTS), json!(["one\ntwo"]));
    assert_eq!(page.eval("document.getElementById('content').value"), "");

    // A slash in a text is a slash.
    page.press("/");
    assert_eq!(page.eval("document.getElementById('content').value"), "/");

    // Tab comes by everything that can be used, and each shows that it has the focus.
    page.eval("document.activeElement.blur()");
    let mut reached = Vec::new();
    for _ in 0..30 {
        page.press("Tab");
        let focus = page.eval(
            "(() => { const it = document.activeElement; \
             return [it.id || it.href || it.value, getComputedStyle(it).outlineStyle]; })()",
        );
        let name = focus[0].as_str().unwrap_or_default().to_owned();
        if !name.is_empty() {
            assert_eq!(focus[1], "solid", "{name} has no outline");
        }
        reached.push(name);
    }
    let link = url(server.address, "channel=other");
    for wanted in [
        "find", "channel", "feed", &link, "scroller", "author", "lane", "content",
    ] {
        assert!(
            reached.iter().any(|name| name == wanted),
            "no {wanted}: {reached:?}"
        );
    }
}

/// Publishes numbered messages, many at a time.
fn flood(server: &TestServer, numbers: std::ops::Range<u64>) {
    std::thread::scope(|scope| {
        for part in 0..4 {
            let numbers = numbers.clone();
            scope.spawn(move || {
                let mut http = server.http();
                for number in numbers.filter(|number| number % 4 == part) {
                    http.publish("lab", &format!("message {number}"));
                }
            });
        }
    });
}

#[test]
fn a_flood_leaves_the_page_small_and_awake() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start();
    let mut page = open(&mut browser, server.address, "channel=lab");
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(&server, 0..20_000));
        while !flood.is_finished() {
            let rows = page.eval("document.getElementById('log').childElementCount");
            assert!(rows.as_u64().expect("a number") <= 500, "{rows}");
        }
    });
    page.wait("document.getElementById('log').lastElementChild?.messageId === 20000");
    let shown = ids(&mut page);
    assert!(shown.len() <= 500, "{}", shown.len());
    let last = shown.len() as u64;
    assert_eq!(shown, (20_001 - last..=20_000).collect::<Vec<u64>>());
    page.wait("document.getElementById('channel-facts').textContent.startsWith('20,000 messages')");
    write(&mut page, "still there");
    page.wait("document.getElementById('log').lastElementChild?.messageId === 20001");
    assert_eq!(page.errors(), [""; 0]);
}

#[test]
fn who_reads_further_up_is_left_alone_and_finds_the_way_back() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start();
    flood(&server, 0..1200);
    let mut page = open(&mut browser, server.address, "channel=lab");
    let contiguous = |page: &mut Page| {
        let shown = ids(page);
        assert!(shown.len() <= 500, "{}", shown.len());
        let first = shown[0];
        assert_eq!(
            shown,
            (first..first + shown.len() as u64).collect::<Vec<u64>>()
        );
        shown
    };
    let scroll = |page: &mut Page, to: &str| {
        page.eval(&format!(
            "document.getElementById('scroller').scrollTop = {to}"
        ));
        page.eval("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))");
    };
    page.wait("document.getElementById('log').lastElementChild?.messageId === 1200");
    eventually("the first message", || {
        scroll(&mut page, "0");
        contiguous(&mut page)[0] == 1
    });
    eventually("the beginning", || {
        scroll(&mut page, "500");
        scroll(&mut page, "0");
        page.eval("!document.getElementById('beginning').hidden") == true
    });
    scroll(&mut page, "500");
    let place = "document.getElementById('scroller').scrollTop";
    let before = page.eval(place);
    for _ in 0..700 {
        server.publish("lab", "meanwhile");
    }
    page.wait("document.getElementById('newest').textContent.startsWith('700 new messages')");
    assert_eq!(page.eval(place), before);
    assert_eq!(contiguous(&mut page)[0], 1);

    // Down again, a page at a time; nothing is left out.
    eventually("the last message", || {
        scroll(&mut page, "1e9");
        contiguous(&mut page).last() == Some(&1900)
    });
    server.publish("lab", "seen at once");
    page.wait("document.getElementById('log').lastElementChild?.messageId === 1901");
    contiguous(&mut page);

    // And at once.
    eventually("further up", || {
        scroll(&mut page, "0");
        contiguous(&mut page)[0] < 1000
    });
    server.publish("lab", "unseen");
    page.wait("!document.getElementById('newest').hidden");
    page.eval("document.getElementById('newest').click()");
    page.wait("document.getElementById('log').lastElementChild?.messageId === 1902");
    contiguous(&mut page);
}

#[test]
fn a_server_that_wants_a_token_is_given_one() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let tokens = Tokens::new();
    let secret = tokens.add("page", &[Scope::Subscribe, Scope::Publish], &["lab"], &[]);
    let server = TestServer::start_with(|config| config.tokens = Some(tokens.path.clone()));
    let ci = bearer(&tokens.add("ci", &[Scope::Publish], &["lab"], &[]));
    server.server().reload().expect("tokens");
    let publish = |content: &str| {
        let body = json!({"channel_id": "lab", "author": "ci", "content": content}).to_string();
        let headers = [
            ("Authorization", &*ci),
            ("Content-Type", "application/json"),
        ];
        let mut http = server.http();
        let answer = http.request("POST", "/api/messages", &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    publish("secret");
    let mut page = browser.open(&url(server.address, "channel=lab"));
    page.wait("!document.getElementById('token-form').hidden");
    assert_eq!(text_of(&mut page, "state-text"), "Waiting for a token");
    for (token, is_right) in [("wrong", false), (&*secret, true)] {
        page.eval("document.getElementById('token').focus()");
        page.type_text(token);
        page.press("Enter");
        if is_right {
            page.wait(LIVE);
        } else {
            page.wait("document.getElementById('token-wrong').textContent !== ''");
        }
    }
    page.wait("document.querySelectorAll('#log .row').length === 1");
    write(&mut page, "an answer");
    publish("and one more");
    page.wait("document.querySelectorAll('#log .row').length === 3");
    assert_eq!(
        page.eval(TEXTS),
        json!(["secret", "an answer", "and one more"])
    );
    let hidden = "document.getElementById('token-form').hidden";
    assert_eq!(page.eval(hidden), true);
    assert_eq!(page.eval("Object.values(sessionStorage)"), json!([secret]));
    assert_eq!(page.eval("Object.values(localStorage)"), json!([]));
    // Administration is not what this token is for.
    let hidden = "document.getElementById('connections-section').hidden";
    assert_eq!(page.eval(hidden), true);
    // It is there after a reload, and gone when it is to be forgotten.
    page.navigate("about:blank");
    page.navigate(&url(server.address, "channel=lab"));
    page.wait(LIVE);
    page.eval("document.getElementById('forget').click()");
    page.wait("!document.getElementById('token-form').hidden");
    assert_eq!(page.eval("sessionStorage.length"), 0);

    // One that is revoked while the page is open asks for another.
    page.eval("document.getElementById('token').focus()");
    page.type_text(&secret);
    page.press("Enter");
    page.wait(LIVE);
    tokens.remove("page");
    server.server().reload().expect("tokens");
    page.wait("document.getElementById('state-text').textContent !== 'Live'");
    page.wait(
        "document.body.innerText.includes('revoked') || !document.getElementById('token-form').hidden",
    );
}

#[test]
fn connections_are_shown_to_administrators_and_can_be_ended() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start();
    let mut lab = Ws::subscribe(server.address, "%3Cb%3Elab%3C%2Fb%3E");
    let address = lab.socket.get_ref().local_addr().expect("an address");
    let mut page = browser.open(&url(server.address, ""));
    let first = "document.querySelector('#connections li')";
    page.wait(&format!("{first} !== null"));
    let shown = page.eval(&format!("{first}.firstChild.textContent"));
    assert_eq!(shown, "<b>lab</b>");
    let facts = page.eval("document.querySelector('#connections p').textContent");
    let facts = facts.as_str().expect("text");
    for part in ["websocket", &address.to_string()] {
        assert!(facts.contains(part), "no {part} in {facts:?}");
    }
    // Only the second press counts.
    let press = "document.querySelector('#connections button').click()";
    page.eval(press);
    lab.send(&json!({"type": "ping"}));
    assert_eq!(lab.next()["type"], "pong");
    page.eval(press);
    assert_eq!(lab.close_code(), Some(1008));
    page.wait(&format!("{first} === null"));
}
