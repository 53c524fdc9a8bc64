use filter_common::Reason;
use tokio::io::AsyncWriteExt;

use crate::{
    harness::{OTHER, UPSTREAM, World, accept, hello, read_all, read_some, soon, write},
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
