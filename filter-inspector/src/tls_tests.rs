use std::time::Duration;

use filter_common::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    harness::{OTHER, UPSTREAM, World, accept, hello, noise, read_all, read_some, soon, write},
    host::Happening,
};

#[tokio::test]
async fn an_allowed_name_is_dialled_and_relayed_both_ways() {
    let world = World::tls().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let hello = hello(Some("Allowed.TEST"));
    write(&mut client, &hello).await;
    let mut server = accept(&upstream).await;
    assert_eq!(read_some(&mut server, hello.len()).await, hello);
    write(&mut server, "from the server").await;
    assert_eq!(read_some(&mut client, 15).await, b"from the server");
    write(&mut client, "from the client").await;
    soon(client.shutdown()).await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"from the client");
    // The client has ended, the server goes on.
    write(&mut server, "last words").await;
    drop(server);
    assert_eq!(read_all(&mut client).await.unwrap(), b"last words");
    world.quiet().await;
    let name = Some("allowed.test".to_owned());
    assert_eq!(
        world.host.told(1),
        [(Happening::Open, Reason::AllowedName, name.clone()), (Happening::Close, Reason::AllowedName, name)]
    );
    let close = &world.host.events(1)[1];
    assert_eq!(close.resolved, Some(UPSTREAM.into()));
    assert_eq!((close.bytes_out, close.bytes_in), (hello.len() as u64 + 15, 25));
}

#[tokio::test]
async fn a_denied_client_gets_its_alert_although_it_has_said_more() {
    let world = World::tls().await;
    let _other = world.upstream(OTHER).await;
    for (name, reason, description) in [
        (Some("denied.test"), Reason::NameNotAllowed, 112),
        (Some("127.0.0.1"), Reason::BadName, 112),
        (None, Reason::NoName, 112),
        (Some("guarded.test"), Reason::Guarded, 49),
        (Some("nowhere.test"), Reason::Unresolved, 80),
        (Some("nobody.test"), Reason::Unresolved, 80),
    ] {
        let before = world.host.events(1).len();
        let mut client = world.client().await;
        let mut said = hello(name);
        let whole = said.len();
        said.extend([23; 200_000]);
        write(&mut client, &said).await;
        assert_eq!(read_all(&mut client).await.unwrap(), [21, 3, 3, 0, 2, 2, description], "{name:?}");
        drop(client);
        world.quiet().await;
        let events = world.host.events(1);
        assert_eq!(events.len(), before + 1, "{name:?}");
        let event = &events[before];
        assert_eq!((event.happening, event.reason), (Happening::Deny, reason), "{name:?}");
        assert!(event.bytes_out >= whole as u64);
    }
}

#[tokio::test]
async fn one_byte_at_a_time() {
    let world = World::tls().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    client.set_nodelay(true).unwrap();
    let hello = hello(Some("deep.below.wild.test"));
    for byte in &hello {
        write(&mut client, [*byte]).await;
        tokio::task::yield_now().await;
    }
    let mut server = accept(&upstream).await;
    assert_eq!(read_some(&mut server, hello.len()).await, hello);
}

#[tokio::test]
async fn either_end_may_end_first() {
    let world = World::tls().await;
    let upstream = world.upstream(UPSTREAM).await;
    let hello = hello(Some("allowed.test"));
    // The server ends, the client goes on.
    let mut client = world.client().await;
    write(&mut client, &hello).await;
    let mut server = accept(&upstream).await;
    read_some(&mut server, hello.len()).await;
    write(&mut server, "all I have to say").await;
    soon(server.shutdown()).await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), b"all I have to say");
    write(&mut client, noise(500_000, 1)).await;
    soon(client.shutdown()).await.unwrap();
    assert!(read_all(&mut server).await.unwrap() == noise(500_000, 1));
    drop((client, server));
    world.quiet().await;
    // A reset at one end is one at the other.
    for client_breaks in [true, false] {
        let mut client = world.client().await;
        write(&mut client, &hello).await;
        let mut server = accept(&upstream).await;
        read_some(&mut server, hello.len()).await;
        let (breaks, mut hears) = if client_breaks { (client, server) } else { (server, client) };
        breaks.set_zero_linger().unwrap();
        drop(breaks);
        assert!(read_all(&mut hears).await.is_err());
        world.quiet().await;
    }
    // Also after it has ended its own direction, when nothing is left to read from it.
    let mut client = world.client().await;
    write(&mut client, &hello).await;
    let mut server = accept(&upstream).await;
    read_some(&mut server, hello.len()).await;
    soon(client.shutdown()).await.unwrap();
    assert_eq!(read_all(&mut server).await.unwrap(), b"");
    client.set_zero_linger().unwrap();
    drop(client);
    world.quiet().await;
}

#[tokio::test]
async fn much_arrives_whole_both_ways_and_a_slow_reader_holds_up_nobody() {
    const SIZE: usize = 8_000_000;
    let world = World::tls().await;
    let upstream = world.upstream(UPSTREAM).await;
    let mut client = world.client().await;
    let hello = hello(Some("allowed.test"));
    write(&mut client, &hello).await;
    let mut server = accept(&upstream).await;
    read_some(&mut server, hello.len()).await;
    let (mut client_reads, mut client_writes) = client.into_split();
    let (mut server_reads, mut server_writes) = server.into_split();
    let there = tokio::spawn(async move {
        client_writes.write_all(&noise(SIZE, 1)).await.unwrap();
    });
    let back = tokio::spawn(async move {
        server_writes.write_all(&noise(SIZE, 2)).await.unwrap();
    });
    // The server reads nothing until the client has everything.
    let mut got = Vec::new();
    soon(client_reads.read_to_end(&mut got)).await.unwrap();
    assert!(got == noise(SIZE, 2));
    got.clear();
    soon(server_reads.read_to_end(&mut got)).await.unwrap();
    assert!(got == noise(SIZE, 1));
    soon(there).await.unwrap();
    soon(back).await.unwrap();
    world.quiet().await;
}

#[tokio::test]
async fn who_does_not_say_whom_it_wants_is_refused_in_time() {
    let world = World::with(|settings, port| {
        settings.tls_ports = vec![port];
        settings.peek_timeout = Duration::from_millis(150);
    })
    .await;
    let silent = tokio::spawn({
        let mut client = world.client().await;
        async move { read_all(&mut client).await.unwrap() }
    });
    // Bytes that trickle in gain no time.
    let mut slow = world.client().await;
    let (mut reads, mut writes) = slow.split();
    let mut alert = Vec::new();
    let trickle = async {
        for byte in hello(Some("allowed.test")) {
            if writes.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = trickle => panic!("all of the hello was taken"),
        read = soon(reads.read_to_end(&mut alert)) => assert!(read.is_ok()),
    }
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 49]);
    assert_eq!(soon(silent).await.unwrap(), alert);
    drop(slow);
    world.quiet().await;
    assert_eq!(world.host.told(1), vec![(Happening::Deny, Reason::PeekTimeout, None); 2]);
}

#[tokio::test]
async fn who_ends_without_a_name_is_refused() {
    let world = World::tls().await;
    let mut client = world.client().await;
    write(&mut client, &hello(Some("allowed.test"))[..50]).await;
    soon(client.shutdown()).await.unwrap();
    assert_eq!(read_all(&mut client).await.unwrap(), [21, 3, 3, 0, 2, 2, 112]);
    world.quiet().await;
    assert_eq!(world.host.told(1), [(Happening::Deny, Reason::NoName, None)]);
    assert_eq!(world.host.events(1)[0].bytes_out, 50);
}

#[tokio::test]
async fn what_a_sandbox_may_leave_unsaid_is_bounded() {
    let world = World::with(|settings, port| {
        settings.tls_ports = vec![port];
        settings.peek_memory = 100_000;
    })
    .await;
    let _upstream = world.upstream(UPSTREAM).await;
    let long = [&[22, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0][..], &[0; 15_991]].concat();
    let mut first: Vec<_> = Vec::new();
    for _ in 0..3 {
        let mut client = world.client().await;
        write(&mut client, &long).await;
        first.push(client);
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.host.told(1), []);
    let mut client = world.client().await;
    write(&mut client, &long).await;
    assert_eq!(read_all(&mut client).await.unwrap(), [21, 3, 3, 0, 2, 2, 49]);
    assert_eq!(world.host.told(1), [(Happening::Deny, Reason::Capacity, None)]);
    // The others are still listened to, and what they had is given back.
    assert_eq!(world.inspector.connections(), 3 + usize::from(world.inspector.connections() == 4));
    drop(first);
    drop(client);
    world.quiet().await;
    let mut client = world.client().await;
    write(&mut client, hello(Some("denied.test"))).await;
    assert_eq!(read_all(&mut client).await.unwrap(), [21, 3, 3, 0, 2, 2, 112]);
}
