use super::*;

fn head(lines: &str) -> Head {
    let bytes = format!("GET / HTTP/1.1\r\n{lines}\r\n\r\n");
    Head::parse(bytes.as_bytes()).expect(lines)
}

fn origins(listen: &str, allowed: &[&str]) -> Origins {
    let allowed: Vec<AllowedOrigin> = allowed
        .iter()
        .map(|text| text.parse().expect("an origin"))
        .collect();
    Origins::new(listen.parse().expect("an address"), &allowed)
}

#[test]
fn on_loopback_only_this_machine_passes() {
    let origins = origins("127.0.0.1:8010", &["https://board.example"]);
    for lines in [
        "Host: localhost:8010",
        "Host: LocalHost",
        "Host: 127.0.0.1:8010\r\nOrigin: http://127.0.0.1:8010",
        "Host: [::1]:8010\r\nOrigin: http://localhost:3000",
        "Host: app.localhost\r\nOrigin: https://app.localhost",
        "Host: board.example\r\nOrigin: https://board.example",
        "Host: localhost\r\nOrigin: https://board.example",
        "Host: localhost\r\nSec-Fetch-Site: none",
        "Host: localhost\r\nSec-Fetch-Site: same-origin",
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate",
    ] {
        assert_eq!(origins.check(&head(lines)), Ok(()), "{lines}");
    }
    for lines in [
        "Host: evil.test:8010",
        "Host: ",
        "Host: localhost.evil.test",
        "Host: 127.0.0.1.evil.test",
        "Host: [::1].evil.test",
        "Host: [::1",
        "Host: 127.0.0.1:80.evil.test",
        "Host: evil.test\r\nOrigin: http://evil.test",
        "Host: localhost\r\nOrigin: null",
        "Host: localhost\r\nOrigin: ",
        "Host: localhost\r\nOrigin: http://evil.test",
        "Host: localhost\r\nOrigin: http://board.example",
        "Host: localhost\r\nOrigin: https://board.example:444",
        "Host: localhost\r\nOrigin: http://localhost.evil.test",
        "Host: localhost\r\nOrigin: http://localhost@evil.test",
        "Host: localhost\r\nOrigin: http://[::1].evil.test",
        "Host: localhost\r\nOrigin: http://127.0.0.1:80.evil.test",
        "Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.test",
        "Host: localhost\r\nOrigin: file://localhost",
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors",
    ] {
        let problem = origins.check(&head(lines)).expect_err(lines);
        assert_eq!(problem.status, 403, "{lines}");
    }
}

#[test]
fn elsewhere_the_own_origin_passes_by_whatever_name() {
    let origins = origins("0.0.0.0:8010", &[]);
    for lines in [
        "Host: any.example",
        "Host: any.example\r\nOrigin: https://any.example",
        "Host: any.example:443\r\nOrigin: https://ANY.example",
        "Host: any.example:8010\r\nOrigin: http://any.example:8010",
    ] {
        assert_eq!(origins.check(&head(lines)), Ok(()), "{lines}");
    }
    for lines in [
        "Host: any.example\r\nOrigin: http://other.example",
        "Host: any.example:8010\r\nOrigin: http://any.example",
        "Host: any.example\r\nOrigin: http://localhost",
        "Host: any.example\r\nOrigin: null",
    ] {
        let problem = origins.check(&head(lines)).expect_err(lines);
        assert_eq!(problem.status, 403, "{lines}");
    }
}

#[test]
fn a_star_lets_everybody_in() {
    let origins = origins("127.0.0.1:8010", &["*"]);
    for lines in ["Host: evil.test", "Host: a\r\nOrigin: null"] {
        assert_eq!(origins.check(&head(lines)), Ok(()), "{lines}");
    }
}

#[test]
fn what_is_no_origin_is_refused_with_what_would_be_right() {
    for text in [
        "",
        "board.example",
        "https://board.example/",
        "https://board.example:443",
        "http://board.example:80",
        "ftp://board.example",
        "null",
        "https://*.example",
    ] {
        let sentence = text.parse::<AllowedOrigin>().expect_err(text);
        assert!(sentence.contains("write"), "{sentence}");
    }
}
