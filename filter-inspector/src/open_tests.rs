use std::{
    fs,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use filter_common::{Class, Reason, RuleWord};
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    time,
};

use crate::{
    harness::{OTHER, UPSTREAM, World, accept, allow, hello, noise, read_all, read_some, soon, until, write},
    host::Happening::{Close, Deny, Open},
};

/// A connection of a sandbox that is relayed: both ends.
async fn relayed(
    world: &World,
    listener: &tokio::net::TcpListener,
    tenant: u8,
    name: &str,
) -> (TcpStream, TcpStream) {
    let mut client = world.client_of(tenant).await;
    let hello = hello(Some(name));
    write(&mut client, &hello).await;
    let mut server = accept(listener).await;
    assert_eq!(read_some(&mut server, hello.len()).await, hello);
    (client, server)
}

#[tokio::test]
async fn what_is_no_longer_allowed_is_cut_and_nothing_else() {
    let world = World::tls().await;
    world.host.enforce(2, 1, crate::harness::policy());
    let upstream = world.upstream(UPSTREAM).await;
    let (mut cut, mut cut_server) = relayed(&world, &upstream, 1, "allowed.test").await;
    let (mut kept, mut kept_server) = relayed(&world, &upstream, 1, "a.wild.test").await;
    let (mut other, mut other_server) = relayed(&world, &upstream, 2, "allowed.test").await;
    world.host.enforce(1, 2, allow(&["new.test", "*.wild.test"]));
    assert_eq!(world.inspector.rejudge(1), 1);
    // A reset at both ends, not an orderly end.
    assert!(read_all(&mut cut).await.is_err());
    assert!(read_all(&mut cut_server).await.is_err());
    for (client, server) in [(&mut kept, &mut kept_server), (&mut other, &mut other_server)] {
        write(client, "there").await;
        assert_eq!(read_some(server, 5).await, b"there");
        write(server, "back").await;
        assert_eq!(read_some(client, 4).await, b"back");
    }
    until(|| world.host.events(1).len() == 4).await;
    let events = world.host.events(1);
    let told: Vec<_> = events.iter().map(|event| (event.happening, event.reason, event.generation)).collect();
    assert_eq!(
        told,
        [
            (Open, Reason::AllowedName, 1),
            (Open, Reason::AllowedName, 1),
            (Deny, Reason::Revoked, 2),
            (Close, Reason::AllowedName, 1)
        ]
    );
    assert_eq!(events[2].server_name.as_deref(), Some("allowed.test"));
    assert_eq!(events[2].rule.class(), Class::Inspected);
    // What goes on goes on under the new policy.
    drop((kept, kept_server));
    until(|| world.host.events(1).len() == 5).await;
    let close = &world.host.events(1)[4];
    assert_eq!((close.happening, close.generation), (Close, 2));
    assert_eq!(close.rule, RuleWord::new(Class::Named, 1));
}

#[tokio::test]
async fn who_is_being_dialled_is_judged_again_too() {
    let world = World::tls().await;
    // A listener that is full answers no SYN.
    let full = TcpSocket::new_v4().unwrap();
    full.bind(SocketAddr::from((OTHER, world.port))).unwrap();
    let full = full.listen(1).unwrap();
    let mut fill = Vec::new();
    while let Ok(Ok(taken)) =
        time::timeout(Duration::from_millis(300), TcpStream::connect(SocketAddr::from((OTHER, world.port))))
            .await
    {
        fill.push(taken);
    }
    let mut client = world.client().await;
    write(&mut client, hello(Some("other.test"))).await;
    time::sleep(Duration::from_millis(50)).await;
    for generation in 2..10 {
        world.host.enforce(1, generation, allow(&["other.test"]));
        world.inspector.rejudge(1);
        time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(world.host.told(1), []);
    world.host.enforce(1, 10, allow(&["allowed.test"]));
    world.inspector.rejudge(1);
    assert_eq!(read_all(&mut client).await.unwrap(), [21, 3, 3, 0, 2, 2, 112]);
    let told = &world.host.events(1)[0];
    assert_eq!((told.happening, told.reason, told.generation), (Deny, Reason::NameNotAllowed, 10));
    drop(full);
}

#[tokio::test]
async fn a_sandbox_that_is_gone_has_no_connections() {
    let world = World::tls().await;
    let upstream = world.upstream(UPSTREAM).await;
    let (mut client, mut server) = relayed(&world, &upstream, 1, "allowed.test").await;
    let mut silent = world.client().await;
    until(|| world.inspector.connections() == 2).await;
    world.host.detach(1);
    world.inspector.forget(1);
    assert!(read_all(&mut client).await.is_err() && read_all(&mut server).await.is_err());
    assert!(read_all(&mut silent).await.is_err());
    world.quiet().await;
    let told: Vec<_> = world.host.told(1).into_iter().map(|told| (told.0, told.1)).collect();
    assert_eq!(told, [(Open, Reason::AllowedName), (Close, Reason::AllowedName)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_may_go_on_lose_nothing_while_policies_change() {
    const SIZE: usize = 20_000_000;
    let world = Arc::new(World::tls().await);
    let upstream = world.upstream(UPSTREAM).await;
    let mut moving = Vec::new();
    for seed in 0..4 {
        let (client, server) = relayed(&world, &upstream, 1, "allowed.test").await;
        for (mut from, mut to, seed) in {
            let (client_reads, client_writes) = client.into_split();
            let (server_reads, server_writes) = server.into_split();
            [(client_writes, server_reads, seed), (server_writes, client_reads, seed + 10)]
        } {
            moving.push(tokio::spawn(async move {
                let sent = noise(SIZE, seed);
                let expected = sent.clone();
                let sending = tokio::spawn(async move {
                    tokio::io::AsyncWriteExt::write_all(&mut from, &sent).await.unwrap();
                });
                let mut got = Vec::with_capacity(SIZE);
                to.read_to_end(&mut got).await.unwrap();
                sending.await.unwrap();
                assert!(got == expected, "{} bytes of {SIZE}", got.len());
            }));
        }
    }
    let done = Arc::new(AtomicBool::new(false));
    let replacing = {
        let (world, done) = (Arc::clone(&world), Arc::clone(&done));
        tokio::spawn(async move {
            let mut generation = 1;
            while !done.load(Ordering::Relaxed) {
                generation += 1;
                let names: &[&str] = if generation % 2 == 0 { &["x.test", "allowed.test"] } else { &["*"] };
                world.host.enforce(1, generation, allow(names));
                assert_eq!(world.inspector.rejudge(1), 0);
                time::sleep(Duration::from_millis(1)).await;
            }
            generation
        })
    };
    for task in moving {
        soon(task).await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(soon(replacing).await.unwrap() > 2);
}

/// A policy that is replaced while connections come: each is either refused, cut or allowed by the last one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_connection_slips_through_a_replacement() {
    let world = World::tls().await;
    let upstream = world.upstream(UPSTREAM).await;
    let accepting = tokio::spawn(async move {
        let mut taken = Vec::new();
        loop {
            taken.push(accept(&upstream).await);
        }
    });
    for round in 0..30 {
        world.host.enforce(1, 2 * round + 1, allow(&["allowed.test"]));
        let mut clients = Vec::new();
        for _ in 0..8 {
            let mut client = world.client().await;
            write(&mut client, hello(Some("allowed.test"))).await;
            clients.push(client);
        }
        time::sleep(Duration::from_micros(u64::from(round) * 100)).await;
        world.host.enforce(1, 2 * round + 2, allow(&["other.test"]));
        world.inspector.rejudge(1);
        for mut client in clients {
            // An alert or a reset, but never silence: the connection is over.
            let end = read_all(&mut client).await;
            assert!(end.is_err() || end.unwrap().starts_with(&[21, 3, 3]));
        }
    }
    accepting.abort();
    world.quiet().await;
}

#[tokio::test]
async fn one_sandbox_cannot_have_all_the_room() {
    let world = World::with(|settings, port| {
        settings.tls_ports = vec![port];
        settings.max_connections = 8;
    })
    .await;
    world.host.enforce(2, 1, crate::harness::policy());
    let (mut refused, mut greedy) = (0, Vec::new());
    for _ in 0..6 {
        let Ok(mut client) = world.try_client_of(1).await else {
            refused += 1;
            continue;
        };
        let mut byte = [0];
        match time::timeout(Duration::from_millis(50), client.read(&mut byte)).await {
            Ok(Err(_)) => refused += 1,
            Ok(Ok(_)) => panic!("nobody said anything"),
            Err(_) => greedy.push(client),
        }
    }
    assert_eq!((refused, greedy.len()), (2, 4));
    until(|| world.host.events(1).len() == 2).await;
    assert_eq!(world.inspector.connections(), 4);
    assert!(world.host.told(1).iter().all(|told| (told.0, told.1) == (Deny, Reason::Capacity)));
    let _other = world.client_of(2).await;
    until(|| world.inspector.connections() == 5).await;
    assert_eq!(world.host.told(2), []);
}

#[tokio::test]
async fn who_was_not_punted_is_not_served() {
    let world = World::tls().await;
    // It is reset, perhaps before it knows that it is connected.
    if let Ok(mut stranger) = soon(TcpStream::connect(("127.0.0.1", world.port))).await {
        assert_eq!(read_all(&mut stranger).await.unwrap_or_default(), b"");
    }
    assert_eq!(world.inspector.connections(), 0);
}

/// Descriptors of the process: those of pipes, and the others.
fn descriptors() -> (usize, usize) {
    let open = fs::read_dir("/proc/self/fd").unwrap();
    let (pipes, others): (Vec<_>, Vec<_>) = open
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .partition(|target| target.to_string_lossy().starts_with("pipe:"));
    (pipes.len(), others.len())
}

/// Says to the test that it has the process, and all descriptors, for itself.
const ALONE: &str = "DESCRIPTORS_COME_BACK_ALONE";

#[test]
fn descriptors_come_back() {
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(use_descriptors());
    }
    let alone = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "open_tests::descriptors_come_back"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && said.contains("1 passed"), "{said}");
}

async fn use_descriptors() {
    let world = World::tls().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut before = None;
    for round in 0..4 {
        let mut open = Vec::new();
        for seed in 0..20 {
            let (mut client, mut server) = relayed(&world, &upstream, 1, "allowed.test").await;
            let bytes = noise(1_000_000, seed);
            let sent = bytes.clone();
            let sending = tokio::spawn(async move {
                write(&mut client, sent).await;
                client
            });
            assert!(read_some(&mut server, bytes.len()).await == bytes);
            open.push((sending.await.unwrap(), server));
        }
        // Nobody has a pipe who has nothing to move; the pool keeps a few.
        let (pipes, _) = descriptors();
        assert!(pipes <= 2 * 32 + 8, "{pipes}");
        match round {
            0 | 1 => drop(open),
            2 => {
                world.host.enforce(1, 9, allow(&["other.test"]));
                assert_eq!(world.inspector.rejudge(1), 20);
                world.host.enforce(1, 10, allow(&["allowed.test"]));
                drop(open);
            }
            _ => {
                world.inspector.forget(1);
                drop(open);
            }
        }
        world.quiet().await;
        let (_, after) = descriptors();
        assert!(after <= *before.get_or_insert(after), "{after} instead of {before:?}");
    }
}
