//! Credentials that may do less: what isn't told isn't taken for absent.

use std::path::PathBuf;

use crate::support::{
    Cluster, Pgkeep,
    pgkeep::Output,
    s3::{BUCKET, Server, Wire, wire::Fault},
};

const ABSENT: &str = "0000000100000000000000F0";
const DENIED: Fault = Fault::Answer(403, "AccessDenied");

/// A repository with one segment, and credentials without `s3:ListBucket`.
struct Place {
    cluster: Cluster,
    pgkeep: Pgkeep,
    wire: Wire,
    segment: String,
}

impl Place {
    fn new() -> Self {
        let cluster = Cluster::builder(15).wal_segsize(1).start();
        let pgkeep = Pgkeep::on_server(&cluster, Server::start());
        pgkeep.init();
        pgkeep.archive(&cluster);
        pgkeep.ok(["check"]);
        let segment = cluster.switch_wal();
        let server = pgkeep.server().expect("a server");
        let wire = Wire::to(server.address());
        pgkeep.edit(|text| text.replace(&server.endpoint(), &wire.endpoint()));
        pgkeep.set("cluster.main", "outage-timeout = \"0s\"");
        let pushed = pgkeep.run_in(cluster.pgdata(), ["archive-push", &wal(&segment)]);
        assert_eq!(pushed.code, 0, "{pushed}");
        Place { cluster, pgkeep, wire, segment }
    }

    fn get(&self, segment: &str) -> Output {
        let arguments = ["archive-get", segment, "pg_wal/RECOVERYXLOG"];
        self.pgkeep.run_in(self.cluster.pgdata(), arguments)
    }

    fn objects(&self) -> PathBuf {
        self.pgkeep.server().expect("a server").objects("")
    }
}

fn wal(segment: &str) -> String {
    format!("pg_wal/{segment}")
}

#[test]
fn without_permission_to_list_a_missing_object_is_not_absent() {
    let place = Place::new();
    assert_eq!(place.get(ABSENT).code, 1, "who may list hears that it isn't there");

    // S3 answers 403 then for a key that isn't there, and lists nothing.
    let objects = place.objects();
    assert!(objects.ends_with(BUCKET));
    let is_missing = move |key: &str| !objects.join(key).exists();
    let missing = is_missing.clone();
    place.wire.plan(move |request| match request.operation {
        "GetObject" | "HeadObject" => missing(&request.key).then_some(DENIED),
        // The keys are found by listing: that may be allowed on its own.
        "ListObjectsV2" => (!request.key.ends_with("/keys/")).then_some(DENIED),
        _ => None,
    });
    assert_eq!(place.get(&place.segment).code, 0);
    let absent = place.get(ABSENT);
    assert_eq!(absent.code, 126, "{absent}");
    assert!(absent.stderr.contains("AccessDenied"), "{absent}");
    assert!(absent.stderr.contains("docs/s3.md says which permissions"), "{absent}");
    let next = place.cluster.switch_wal();
    let pushed = place.pgkeep.run_in(place.cluster.pgdata(), ["archive-push", &wal(&next)]);
    assert!((3..=125).contains(&pushed.code), "{pushed}");
    assert!(pushed.stderr.contains("AccessDenied"), "{pushed}");

    // And nothing at all without the keys.
    place.wire.plan(move |request| match request.operation {
        "GetObject" | "HeadObject" => is_missing(&request.key).then_some(DENIED),
        "ListObjectsV2" => Some(DENIED),
        _ => None,
    });
    for segment in [&place.segment, ABSENT] {
        let got = place.get(segment);
        assert_eq!(got.code, 126, "{got}");
        assert!(got.stderr.contains("AccessDenied"), "{got}");
    }
}
