//! `weir events`, `weir notify` and `weir data`, run as a shell runs them.

use serde_json::Value;

use crate::{
    cli::{Run, restartable},
    publisher::newest,
    support::TestServer,
};

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Runs a command that prints one sequence.
async fn sequence(server: &TestServer, args: &[&str]) -> u64 {
    let ended = Run::on(server, args).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    ended.out[0].parse().unwrap()
}

#[tokio::test]
async fn events_are_published_and_followed_across_kill_9() {
    let mut server = restartable().await;
    let first = sequence(&server, &["events", "ann", "--publish", "login"]).await;
    let mut follow = Run::on(&server, &["events", "ann", "--since", "1h"]);
    let line = follow.line().await;
    let columns: Vec<_> = line.split('\t').collect();
    assert_eq!(
        (columns[0], columns[2]),
        (first.to_string().as_str(), "login")
    );
    server.kill().await;
    follow.notice("next attempt").await;
    let server = server.restart_in_place().await;
    sequence(&server, &["events", "ann", "--publish", "profile-update"]).await;
    assert!(follow.line().await.contains("\tprofile-update\t"));
    let keyed = ["events", "ann", "--publish", "logout", "--key", "k"];
    let once = sequence(&server, &keyed).await;
    assert_eq!(sequence(&server, &keyed).await, once);

    let args = [
        "events",
        "ann",
        "--type",
        "login,logout",
        "--after",
        "0",
        "--count",
        "2",
        "--json",
    ];
    let ended = Run::on(&server, &args).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let kinds: Vec<_> = ended
        .out
        .iter()
        .map(|line| parsed(line)["type"].clone())
        .collect();
    assert_eq!(kinds, ["login", "logout"]);
    follow.interrupt();
    assert_eq!(follow.end().await.code, Some(130));

    let ended = Run::on(&server, &["events", "ann", "--type", "shout"])
        .end()
        .await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended
            .err
            .iter()
            .any(|line| line.contains("none of login, logout"))
    );
    let ended = Run::on(&server, &["events", ""]).end().await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.err[0].contains("User ID is required"), "{ended:?}");
}

#[tokio::test]
async fn notifications_are_sent_to_one_or_all_and_followed() {
    let server = TestServer::start().await;
    let to_ann = [
        "notify",
        "--user",
        "ann",
        "--title",
        "Backup",
        "done",
        "--category",
        "work",
    ];
    let one = sequence(&server, &to_ann).await;
    let all = sequence(&server, &["notify", "--title", "Lunch", "--priority", "-2"]).await;
    sequence(
        &server,
        &["notify", "--user", "bob", "--title", "Not ann's"],
    )
    .await;
    assert!(one < all);
    let args = [
        "notify", "--follow", "ann", "--after", "0", "--count", "2", "--json",
    ];
    let ended = Run::on(&server, &args).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (first, second) = (parsed(&ended.out[0]), parsed(&ended.out[1]));
    assert_eq!(
        (&first["title"], &first["body"]),
        (&"Backup".into(), &"done".into())
    );
    assert_eq!(
        (&second["user"], &second["priority"]),
        (&"".into(), &(-2).into())
    );
    let args = [
        "notify",
        "--follow",
        "ann",
        "--category",
        "work",
        "--after",
        "0",
        "--count",
        "1",
    ];
    let ended = Run::on(&server, &args).end().await;
    let columns: Vec<_> = ended.out[0].split('\t').collect();
    assert_eq!(columns[2..], ["ann", "work", "Backup", "done"]);
    for wrong in [
        &["notify"][..],
        &["notify", "--follow", "a", "--title", "b"],
    ] {
        assert_eq!(
            Run::on(&server, wrong).end().await.code,
            Some(2),
            "{wrong:?}"
        );
    }
}

#[tokio::test]
async fn data_goes_in_by_lines_and_comes_out_by_lines() {
    let server = TestServer::start().await;
    let mut publish = Run::on(&server, &["data", "--publish", "readings"]);
    publish.say("1.5").await;
    publish
        .say(r#"{"value":"NaN","id":"odd","metadata":{"room":"7"}}"#)
        .await;
    publish.say(" -2 ").await;
    let ended = publish.end().await;
    assert_eq!((ended.code, ended.out), (Some(0), vec!["3".to_owned()]));
    let args = ["data", "readings", "--after", "0", "--count", "3", "--json"];
    let ended = Run::on(&server, &args).end().await;
    let lines: Vec<_> = ended.out.iter().map(|line| parsed(line)).collect();
    let values: Vec<_> = lines.iter().map(|line| line["value"].clone()).collect();
    assert_eq!(values, [Value::from(1.5), "NaN".into(), (-2.0).into()]);
    assert_eq!(
        (&lines[1]["id"], &lines[1]["metadata"]["room"]),
        (&"odd".into(), &"7".into())
    );

    let mut copy = Run::on(&server, &["data", "--publish", "copy"]);
    for line in &ended.out {
        copy.say(line).await;
    }
    assert_eq!(copy.end().await.out, ["3"]);
    let args = ["data", "copy", "readings", "--newest", "4"];
    let ended = Run::on(&server, &args).end().await;
    assert_eq!((ended.code, ended.out.len()), (Some(0), 4));
    assert!(ended.out[3].contains("\tcopy\t-2\t"), "{ended:?}");

    let mut bad = Run::on(&server, &["data", "--publish", "partly"]);
    bad.say("1").await;
    bad.say("two").await;
    let ended = bad.end().await;
    assert_eq!(ended.code, Some(1));
    let text = "1 stored: line 2: `two` is neither a number nor an object";
    assert!(
        ended.err.iter().any(|line| line.contains(text)),
        "{ended:?}"
    );
    assert_eq!(newest(&server, "partly", 10).await.len(), 1);
    let mut own = Run::on(&server, &["data", "--publish", "logs"]);
    own.say("1").await;
    let ended = own.end().await;
    assert_eq!(ended.code, Some(4), "{ended:?}");

    let args = ["data", "metrics", "--count", "1", "--batch", "1"];
    let ended = Run::on(&server, &args).end().await;
    assert!(ended.out[0].contains("\tmetrics\t"), "{ended:?}");
}
