//! What a person with a browser sees, in a real one.

mod common;

use common::TestServer;
use common::browser::Browser;

#[test]
fn the_root_tells_a_browser_what_to_do() {
    let Some(mut browser) = Browser::start() else {
        return;
    };
    let server = TestServer::start();
    let mut page = browser.open(&format!("http://{}/", server.address));
    page.wait("document.body.innerText.includes('threadcast')");
    assert_eq!(page.eval("Promise.resolve(6 * 7)"), 42);
    assert_eq!(page.errors(), [""; 0]);
}
