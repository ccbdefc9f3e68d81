//! `check`: it says that all is well only when it is.

use super::*;
use crate::support::pgkeep::run_to_end;

struct Check(Vec<Site>);

impl Work for Check {
    fn name(&self) -> &str {
        "check"
    }

    fn sites(&self) -> &[Site] {
        &self.0
    }

    fn reset(&self, _: &Site) {}

    fn run(&self, site: &Site, fault: Option<Fault>) -> Output {
        run_to_end(&mut site.command(fault, &["check"]))
    }

    fn is_certain(&self, place: &Place) -> bool {
        !place.asked.contains("pg_stat_archiver") || place.before == 0
    }

    fn check(&self, site: &Site, case: &Case, output: &Output) {
        if output.code == 0 {
            // It has seen the segment that it closed.
            assert!(output.stdout.contains("arriv"), "{case}: {output}");
        } else {
            assert!([1, 6, 7, 9].contains(&output.code), "{case}: {output}");
        }
        let again = run_to_end(&mut site.command(None, &["check"]));
        assert_eq!(again.code, 0, "{case}: the second run: {again}");
    }
}

#[test]
fn a_check() {
    let site = || {
        let cluster = Cluster::builder(15).wal_segsize(1).conf("autovacuum = off").start();
        let pgkeep = Pgkeep::archiving(&cluster);
        Site::new(cluster, pgkeep)
    };
    matrix(&Check(vec![site(), site()]), 40, (60, 1500));
}
