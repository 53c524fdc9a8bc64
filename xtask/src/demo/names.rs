//! Fourth act: the policy of `gamma` has names. Whom it asks for decides, and the filter chooses the address. The
//! number beside each attempt counts the packets that arrived where `gamma` sent it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use filter_tests::hickory_proto::op::{Message, Query};
use filter_tests::hickory_proto::rr::{Name, RData, RecordType};

use super::Findings;
use super::paint::{Style, line, title};
use super::stage::{
    ELSEWHERE, GAMMA, HTTP, IMAGES, MIRROR, NAMED, PATIENCE, RESOLVER, SHOP, STRANGER, Stage, TLS, TRACKER,
};

/// An attempt, and what the policy says to it.
struct Row {
    what: String,
    to: SocketAddr,
    probe: Probe,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Probe {
    /// A handshake for this name, and a request.
    Tls(&'static str),
    /// A request for this host.
    Http(&'static str),
    /// The question where this name leads.
    Dns(&'static str),
    /// A datagram, as QUIC begins with.
    Datagram,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// This server answers, wherever the attempt was sent.
    AnswerOf(Ipv4Addr),
    /// The filter answers the question itself.
    Resolved,
    Refused,
}

enum Outcome {
    AnsweredBy(IpAddr),
    Resolved(IpAddr),
    /// Refused at once, with this.
    Refused(String),
    /// Anything else, such as silence.
    Odd(String),
}

/// Widths of the columns.
const WHAT: usize = 50;
const CELL: usize = 52;

pub fn play(stage: &Stage, findings: &mut Findings) -> Result<()> {
    title("4. Names: whom gamma asks for, what it saw, and how many packets arrived where it sent them");
    line(&[(Style::Faint, format!("  {:<WHAT$}{GAMMA:<CELL$} pkts", ""))]);
    for row in rows() {
        let arrived = || stage.internet.count(|flow| row.is_to(flow.destination, flow.port));
        let before = arrived()?.frames;
        let begun = Instant::now();
        let outcome = row.attempt(stage)?;
        let took = begun.elapsed();
        let arrived = arrived()?.frames - before;

        let right = row.is_right(&outcome, took, arrived);
        let (style, text) = outcome.shown(took);
        findings.expect(right, format!("{GAMMA}, {}: {text}, {arrived} packets arrived", row.what));
        line(&[
            (Style::Plain, format!("  {:<WHAT$}", row.what)),
            (if right { style } else { Style::Bad }, format!("{text:<CELL$}")),
            (Style::Faint, format!("{arrived:>5}")),
        ]);
    }
    Ok(())
}

fn rows() -> Vec<Row> {
    let row = |what: String, to: Ipv4Addr, port, probe, expected| Row {
        what,
        to: SocketAddr::new(to.into(), port),
        probe,
        expected,
    };
    let shop = Expected::AnswerOf(SHOP);
    vec![
        row(format!("TLS  {NAMED}"), SHOP, TLS, Probe::Tls(NAMED), shop),
        row(format!("TLS  {IMAGES}"), MIRROR, TLS, Probe::Tls(IMAGES), Expected::AnswerOf(MIRROR)),
        row(format!("TLS  {STRANGER}"), TRACKER, TLS, Probe::Tls(STRANGER), Expected::Refused),
        row(format!("HTTP {NAMED}"), SHOP, HTTP, Probe::Http(NAMED), shop),
        row(format!("HTTP {STRANGER}"), TRACKER, HTTP, Probe::Http(STRANGER), Expected::Refused),
        // The name is an allowed one, the address is the attacker's: nothing gets there.
        row(format!("TLS  {NAMED} as spoofed SNI, to {TRACKER}"), TRACKER, TLS, Probe::Tls(NAMED), shop),
        row(format!("HTTP {NAMED}, in /etc/hosts {TRACKER}"), TRACKER, HTTP, Probe::Http(NAMED), shop),
        row(format!("DNS  {NAMED}? to {RESOLVER}"), RESOLVER, 53, Probe::Dns(NAMED), Expected::Resolved),
        row(format!("DNS  {NAMED}? to {ELSEWHERE}"), ELSEWHERE, 53, Probe::Dns(NAMED), Expected::Refused),
        row(format!("QUIC {NAMED}"), SHOP, TLS, Probe::Datagram, Expected::Refused),
    ]
}

impl Row {
    fn is_to(&self, destination: IpAddr, port: u16) -> bool {
        self.to == SocketAddr::new(destination, port)
    }

    fn attempt(&self, stage: &Stage) -> Result<Outcome> {
        let gamma = &stage.gamma;
        Ok(match self.probe {
            Probe::Tls(name) => match stage.ca.connect(gamma, self.to, name, PATIENCE) {
                Ok(mut tls) => {
                    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
                    tls.write_all(request.as_bytes())?;
                    let mut answer = [0; 1024];
                    let length = tls.read(&mut answer)?;
                    Outcome::of_answer(&String::from_utf8_lossy(answer.get(..length).unwrap_or_default()))
                }
                Err(error) => Outcome::of_error(&error.root_cause().to_string()),
            },
            Probe::Http(name) => match gamma.http_get(self.to, name, PATIENCE).result {
                Ok(answer) if answer.status == 200 => Outcome::of_answer(&answer.body),
                Ok(answer) => {
                    let reason = answer.body.split('"').skip_while(|word| *word != "reason").nth(2);
                    Outcome::Refused(format!("{} {}", answer.status, reason.unwrap_or_default()))
                }
                Err(error) => Outcome::Odd(error.to_string()),
            },
            Probe::Dns(name) => {
                let mut question = Message::query();
                question.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
                let attempt = gamma.udp_exchange(self.to, &question.to_vec()?, PATIENCE);
                match (&attempt.result, attempt.errno()) {
                    (Ok(answer), _) => Outcome::of_dns(answer)?,
                    (Err(_), Some(errno)) => Outcome::Refused(format!("{errno:?}")),
                    (Err(error), None) => Outcome::Odd(error.to_string()),
                }
            }
            Probe::Datagram => {
                let attempt = gamma.udp_exchange(self.to, b"hello", PATIENCE);
                match (&attempt.result, attempt.errno()) {
                    (Err(_), Some(errno)) => Outcome::Refused(format!("{errno:?}")),
                    (Err(error), None) => Outcome::Odd(error.to_string()),
                    (Ok(_), _) => Outcome::Odd("an answer".to_owned()),
                }
            }
        })
    }

    /// Where the policy allows it: the right server answered, and what went elsewhere did not arrive there. Else:
    /// told so at once, and not a packet arrived.
    fn is_right(&self, outcome: &Outcome, took: Duration, arrived: u64) -> bool {
        match (self.expected, outcome) {
            (Expected::AnswerOf(server), Outcome::AnsweredBy(by)) => {
                *by == IpAddr::from(server) && (arrived > 0) == (self.to.ip() == IpAddr::from(server))
            }
            (Expected::Resolved, Outcome::Resolved(address)) => *address == IpAddr::from(SHOP),
            (Expected::Refused, Outcome::Refused(_)) => arrived == 0 && took < Duration::from_secs(1),
            _ => false,
        }
    }
}

impl Outcome {
    /// The servers say at which address they were asked.
    fn of_answer(answer: &str) -> Self {
        let server = answer.split("hello from ").nth(1).and_then(|rest| rest.split_whitespace().next());
        match server.map(str::parse::<SocketAddr>) {
            Some(Ok(server)) => Self::AnsweredBy(server.ip()),
            _ => Self::Odd(format!("the answer {answer:?}")),
        }
    }

    fn of_error(error: &str) -> Self {
        if error.contains("alert") { Self::Refused(error.to_owned()) } else { Self::Odd(error.to_owned()) }
    }

    fn of_dns(answer: &[u8]) -> Result<Self> {
        let answer = Message::from_vec(answer).context("that is no DNS message")?;
        let address = answer.answers.iter().find_map(|record| {
            let RData::A(address) = record.data else { return None };
            Some(IpAddr::from(address.0))
        });
        Ok(address.map_or_else(|| Self::Odd(answer.metadata.response_code.to_string()), Self::Resolved))
    }

    fn shown(&self, took: Duration) -> (Style, String) {
        let ms = took.as_secs_f64() * 1000.0;
        match self {
            Self::AnsweredBy(server) => (Style::Good, format!("✓ {server} answered in {ms:.2} ms")),
            Self::Resolved(address) => (Style::Good, format!("✓ it is {address}, in {ms:.2} ms")),
            Self::Refused(how) => (Style::Denied, format!("✗ {how} in {ms:.2} ms")),
            Self::Odd(what) => (Style::Bad, format!("? {what}")),
        }
    }
}
