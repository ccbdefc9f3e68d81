//! One connection that stays open.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// What ends a statement's output.
const END: &str = "-- end of output --";

/// A psql that is kept running, for what must happen in one connection.
#[derive(Debug)]
pub struct Session {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Session {
    /// Starts this psql.
    pub(super) fn open(mut psql: Command) -> Self {
        let mut child = psql
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("start psql");
        let input = child.stdin.take().expect("a pipe");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        Session { child, input, output }
    }

    /// Runs SQL and returns what it printed.
    pub fn sql(&mut self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|| panic!("the connection broke at: {sql}"))
    }

    /// Runs SQL; `None` when it failed or the connection broke, after which the session is over.
    pub fn try_sql(&mut self, sql: &str) -> Option<String> {
        writeln!(self.input, "{sql};\n\\echo '{END}'").ok()?;
        let mut printed = Vec::new();
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end_matches('\n') {
                END => return Some(printed.join("\n")),
                line => printed.push(line.to_owned()),
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
