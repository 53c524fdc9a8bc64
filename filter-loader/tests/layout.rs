//! The types in shared memory lie there as the kernel programs were compiled to have them: the object's BTF
//! against this build's own types; and the maps are as large as everybody thinks.
//!
//! Nothing here needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test panics to fail")]

mod btf;

use std::mem::offset_of;

use aya_obj::generated::bpf_map_type::*;
use filter_common::Addr;
use filter_common::layout::*;
use filter_loader::kernel::object::OBJECT;

use crate::btf::Btf;

fn object() -> aya_obj::Object {
    aya_obj::Object::parse(OBJECT).unwrap()
}

/// Compares a type's size and the offset of each field that is named. Together with its size the names must
/// be all of its fields.
macro_rules! same_layout {
    ($btf:expr, $type:ident { $($field:ident),+ $(,)? }) => {{
        let (size, fields) = $btf.layout(stringify!($type));
        assert_eq!(size as usize, size_of::<$type>(), "size of {}", stringify!($type));
        let here = vec![$((stringify!($field).to_owned(), offset_of!($type, $field))),+];
        assert_eq!(fields, here, "fields of {}", stringify!($type));
    }};
}

#[test]
fn shared_types_lie_where_the_programs_have_them() {
    let btf = Btf::of(&object());
    same_layout!(
        btf,
        Flow {
            last_seen,
            bytes_out,
            bytes_in,
            generation,
            rule,
            state,
            next_of_sandbox,
            next_of_remote,
            slot,
            opened,
            macs,
            zero,
        }
    );
    same_layout!(btf, FlowEntry { key, inbound, flow, zero });
    same_layout!(btf, FlowSet { tags, entries });
    same_layout!(btf, FlowLock { lock, zero });
    same_layout!(btf, FlowSeed { odd });
    same_layout!(btf, Closed { until, generation, rule });
    same_layout!(btf, Sandbox { tenant, slot, flags, ifindex, addr_count, mac, iface_mac, addrs });
    same_layout!(btf, Policy { egress_connections, flags, hash });
    same_layout!(btf, Budget { active, peak, refused, inbound, zero });
    same_layout!(btf, Counters { by_reason });
    same_layout!(btf, Count { packets, bytes });
    same_layout!(btf, Throttle { window, refusals, denials, connections, untold });
    same_layout!(
        btf,
        Event {
            at,
            opened,
            bytes_out,
            bytes_in,
            local,
            remote,
            tenant,
            generation,
            rule,
            local_port,
            remote_port,
            kind,
            reason,
            protocol,
            inbound,
            zero,
        }
    );
    same_layout!(btf, Cut { key, ifindex, next_of_sandbox, next_of_remote, macs, rule });
    same_layout!(btf, Punt { tenant });
    same_layout!(btf, Expiry { timer, cursor, running });
}

/// The key's fields are its own business, so there is no `offset_of!` for them here.
#[test]
fn the_key_of_a_flow_has_no_padding() {
    let btf = Btf::of(&object());
    let (size, fields) = btf.layout("FlowKey");
    assert_eq!(size as usize, size_of::<FlowKey>());
    let expected = [("local", 0), ("remote", 16), ("tenant", 32), ("ports", 36), ("protocol", 40)];
    assert_eq!(fields, expected.map(|(name, offset)| (name.to_owned(), offset)));
    let (size, fields) = btf.layout("PuntKey");
    assert_eq!(size as usize, size_of::<PuntKey>());
    let expected = [("src", 0), ("dst", 16), ("ports", 32), ("protocol", 36)];
    assert_eq!(fields, expected.map(|(name, offset)| (name.to_owned(), offset)));
    let (size, _) = btf.layout("Addr");
    assert_eq!(size as usize, size_of::<Addr>());
}

/// Type, key, value, entries, flags.
type Definition = (u32, u32, u32, u32, u32);

#[test]
fn maps_are_as_large_as_they_are_meant_to_be() {
    const NO_PREALLOC: u32 = 1;
    const MMAPABLE: u32 = 1 << 10;
    let size = |bytes: usize| u32::try_from(bytes).unwrap();
    let array = |value: usize, entries: u32| (BPF_MAP_TYPE_ARRAY as u32, 4, size(value), entries, 0);
    let shared = |value: usize, entries: u32| (BPF_MAP_TYPE_ARRAY as u32, 4, size(value), entries, MMAPABLE);
    let outer = |entries: u32| (BPF_MAP_TYPE_ARRAY_OF_MAPS as u32, 4, 4, entries, 0);
    let ring = |bytes: u32| (BPF_MAP_TYPE_RINGBUF as u32, 0, 0, bytes, 0);
    let (key, closed) = (size(size_of::<FlowKey>()), size(size_of::<Closed>()));
    let expected: [(&str, Definition); 19] = [
        ("BUDGETS", array(size_of::<Budget>(), MAX_SANDBOXES)),
        ("CLOSED", (BPF_MAP_TYPE_LRU_HASH as u32, key, closed, 65_536, 0)),
        ("COUNTERS", (BPF_MAP_TYPE_ARRAY as u32, 4, size(size_of::<Counters>()), MAX_SANDBOXES, MMAPABLE)),
        ("CUTS", ring(256 << 10)),
        ("DISPLACED", (BPF_MAP_TYPE_HASH as u32, 4, size(size_of::<Sandbox>()), MAX_SANDBOXES, NO_PREALLOC)),
        ("EVENTS", ring(4 << 20)),
        ("EVENTS_LOST", array(size_of::<u64>(), 2)),
        ("EXPIRY", array(size_of::<Expiry>(), 1)),
        ("FLOWS", shared(size_of::<FlowSet>(), FLOW_SETS)),
        ("FLOW_LOCKS", array(size_of::<FlowLock>(), FLOW_LOCKS)),
        ("FLOW_SEED", array(size_of::<FlowSeed>(), 1)),
        ("POLICIES", array(size_of::<Policy>(), MAX_POLICIES)),
        ("POLICY_WORDS", shared(size_of::<u64>(), MAX_SANDBOXES)),
        (
            "PUNTED",
            (
                BPF_MAP_TYPE_HASH as u32,
                size(size_of::<PuntKey>()),
                size(size_of::<Punt>()),
                MAX_PUNTED,
                NO_PREALLOC,
            ),
        ),
        ("SANDBOXES", array(size_of::<Sandbox>(), MAX_SANDBOXES)),
        ("SOCKETS", (BPF_MAP_TYPE_SOCKMAP as u32, 4, 4, socket::COUNT, 0)),
        ("THROTTLES", array(size_of::<Throttle>(), MAX_SANDBOXES)),
        ("TRIES", outer(MAX_POLICIES)),
        ("VERDICTS", (BPF_MAP_TYPE_LRU_HASH as u32, key, 4, MAX_VERDICTS, 0)),
    ];
    let object = object();
    let mut found: Vec<(&str, Definition)> = object
        .maps
        .iter()
        // The compiler's own sections, and what only programs use.
        .filter(|(name, _)| !name.starts_with('.') && !["SUBJECT", "FRESH"].contains(&name.as_str()))
        .map(|(name, map)| {
            let definition =
                (map.map_type(), map.key_size(), map.value_size(), map.max_entries(), map.map_flags());
            (name.as_str(), definition)
        })
        .collect();
    found.sort_unstable();
    assert_eq!(found, expected);
    // The template of the inner maps.
    let inner = |name: &str| {
        let map = object.maps[name].inner().expect("a template");
        (map.map_type(), map.key_size(), map.value_size(), map.max_entries(), map.map_flags())
    };
    let (kind, key, value, _, flags) = inner("TRIES");
    assert_eq!((kind, key, value, flags), (BPF_MAP_TYPE_LPM_TRIE as u32, 20, 4, NO_PREALLOC));
}
