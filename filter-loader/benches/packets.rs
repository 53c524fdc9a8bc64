//! Nanoseconds a packet: `cargo bench -p filter-loader --bench packets`.
#[path = "../tests/fixtures/mod.rs"]
mod fixtures;

use fixtures::Document;
use fixtures::frames::{self, *};
use fixtures::machine::{Direction, Machine};

fn main() {
    let mut machine = Machine::new();
    for family in Family::BOTH {
        machine.enter(&fixtures::machine::Tenant::ORDINARY, Document::Listed);
        for (d, f) in [
            (Direction::Out, frames::tcp(here(family), there(family), SYN, b"")),
            (Direction::Forwarded, frames::tcp(there(family), here(family), SYN_ACK, b"")),
            (Direction::Out, frames::tcp(here(family), there(family), ACK, b"")),
        ] {
            assert_eq!(machine.run(d, &f.bytes).action, -1);
        }
        for (name, d, f) in [
            (
                "known TCP data segment",
                Direction::Out,
                frames::tcp(here(family), there(family), PSH_ACK, &[0; 1400]),
            ),
            ("pure ACK", Direction::Forwarded, frames::tcp(there(family), here(family), ACK, b"")),
        ] {
            let ns: Vec<u128> =
                (0..3).map(|_| machine.repeat(d, &f.bytes, 1_000_000).duration.as_nanos()).collect();
            println!("{name} {family:?}: {ns:?}");
        }
    }
    let mut c = fixtures::machine::Context::of(Direction::Out);
    c.mark = fixtures::machine::MARK;
    let f = frames::tcp(here(Family::V4), there(Family::V4), PSH_ACK, &[0; 1400]);
    println!("baseline {:?}", machine.try_run("from_sandbox", &f.bytes, &c, 1_000_000).unwrap().duration);
}
