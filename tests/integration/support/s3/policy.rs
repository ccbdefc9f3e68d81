//! The permissions that `docs/s3.md` shows, and a server that keeps to them.

use serde_json::Value;

use super::wire::{Fault, Request};

/// What is answered to who may not.
pub const DENIED: Fault = Fault::Answer(403, "AccessDenied");

const DOCUMENT: &str = include_str!("../../../../docs/s3.md");

/// What somebody may do with the bucket of the document.
#[derive(Debug, Clone, Default)]
pub struct Policy(Vec<Statement>);

#[derive(Debug, Clone)]
struct Statement {
    allows: bool,
    actions: Vec<String>,
    resource: String,
    /// It is about all resources but this one.
    others: bool,
    /// It is about creations without the condition that there be no such object.
    unconditional: bool,
}

/// The policies of the document, in its order.
#[derive(Debug)]
pub struct Documented {
    /// For a host that may only add.
    pub add: Policy,
    /// Demands the condition of who creates something.
    pub conditional: Policy,
    /// What a host that removes has in addition.
    pub remove: Policy,
    /// What either has in addition where there are versions.
    pub versions: Policy,
    /// What a host that removes has in addition there.
    pub remove_versions: Policy,
}

impl Documented {
    /// Reads the document.
    pub fn read() -> Self {
        let mut policies = DOCUMENT.split("```json\n").skip(1).map(|rest| {
            let text = rest.split("```").next().unwrap_or_default();
            Policy::of(&serde_json::from_str(text).expect("JSON"))
        });
        let mut next = || policies.next().expect("a policy");
        let documented = Documented {
            add: next(),
            conditional: next(),
            remove: next(),
            versions: next(),
            remove_versions: next(),
        };
        assert!(policies.next().is_none(), "there are more of them");
        documented
    }
}

/// A command of the document's table.
#[derive(Debug)]
pub struct Needs {
    /// Its name.
    pub command: String,
    /// Without one of these actions it fails.
    pub needs: Vec<String>,
    /// Without these it goes on.
    pub uses: Vec<String>,
}

/// The document's table of commands.
pub fn commands() -> Vec<Needs> {
    let rows = DOCUMENT.lines().skip_while(|line| !line.starts_with("| command | needs |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with('|'));
    let quoted = |cell: &str| -> Vec<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(quoted).collect();
        let [_, commands, needs, uses, _] = &cells[..] else { panic!("{line}") };
        let of = |command: &String| Needs {
            command: command.clone(),
            needs: needs.clone(),
            uses: uses.clone(),
        };
        commands.iter().map(of).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
}

impl Policy {
    /// A policy, or a statement of one.
    fn of(value: &Value) -> Self {
        match value.get("Statement") {
            Some(statements) => {
                let statements = statements.as_array().expect("a list of statements");
                Policy(statements.iter().map(Statement::of).collect())
            }
            None => Policy(vec![Statement::of(value)]),
        }
    }

    /// Allows these actions, named as in the table, in the whole bucket.
    pub fn allowing(actions: &[String]) -> Self {
        let actions: Vec<_> = actions.iter().map(|action| format!("s3:{action}")).collect();
        let resource = "arn:aws:s3:::my-bucket*".to_owned();
        let (allows, others, unconditional) = (true, false, false);
        Policy(vec![Statement { allows, actions, resource, others, unconditional }])
    }

    /// Both.
    pub fn and(&self, other: &Policy) -> Self {
        Policy([&self.0[..], &other.0].concat())
    }

    /// Whether an action of a request is allowed.
    fn allows(&self, action: &str, request: &Request) -> bool {
        let about = |statement: &&Statement| statement.is_about(action, request);
        let mut about = self.0.iter().filter(about).peekable();
        about.peek().is_some() && about.all(|statement| statement.allows)
    }

    /// For a wire: what a server does with a request of somebody who has this policy.
    pub fn plan(&self) -> impl FnMut(&Request) -> Option<Fault> + Send + 'static {
        let policy = self.clone();
        move |request| match request.operation {
            _ if !policy.allows(&action(request), request) => Some(DENIED),
            // Their lock isn't told then.
            "GetObject" | "HeadObject" if !policy.allows("s3:GetObjectRetention", request) => {
                Some(Fault::Without("x-amz-object-lock-"))
            }
            _ => None,
        }
    }
}

/// The action that a request is, by AWS's names.
pub fn action(request: &Request) -> String {
    let of_a_version = request.names_a_version();
    let action = match request.operation {
        "HeadObject" | "GetObject" if of_a_version => "GetObjectVersion",
        "HeadObject" => "GetObject",
        "ListObjectsV2" => "ListBucket",
        "ListMultipartUploads" => "ListBucketMultipartUploads",
        "ListObjectVersions" => "ListBucketVersions",
        "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload" => "PutObject",
        "DeleteObject" if of_a_version => "DeleteObjectVersion",
        "GetObjectLockConfiguration" => "GetBucketObjectLockConfiguration",
        other => other,
    };
    format!("s3:{action}")
}

impl Statement {
    fn of(value: &Value) -> Self {
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        let actions = match &value["Action"] {
            Value::Array(actions) => actions.iter().map(text).collect(),
            action => vec![text(action)],
        };
        let others = value.get("NotResource").is_some();
        let resource = text(&value[if others { "NotResource" } else { "Resource" }]);
        let condition = value.get("Condition");
        if let Some(condition) = condition {
            let known = r#"{"Bool":{"s3:ObjectCreationOperation":"true"},"Null":{"s3:if-none-match":"true"}}"#;
            assert_eq!(condition.to_string(), known);
        }
        let allows = match &text(&value["Effect"])[..] {
            "Allow" => true,
            "Deny" => false,
            other => panic!("{other}"),
        };
        Statement { allows, actions, resource, others, unconditional: condition.is_some() }
    }

    fn is_about(&self, action: &str, request: &Request) -> bool {
        let of_the_bucket = request.operation.starts_with("List")
            || request.operation == "GetObjectLockConfiguration";
        let resource = match of_the_bucket {
            true => "arn:aws:s3:::my-bucket".to_owned(),
            false => format!("arn:aws:s3:::my-bucket/{}", request.key),
        };
        let creates = ["PutObject", "CompleteMultipartUpload"].contains(&request.operation);
        let unconditional = creates && request.header("if-none-match").is_none();
        self.actions.iter().any(|known| known == action)
            && matches(&self.resource, &resource) != self.others
            && (unconditional || !self.unconditional)
    }
}

/// Whether a text is what a pattern with asterisks says.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((begin, rest)) => text.strip_prefix(begin).is_some_and(|text| {
            (0..=text.len())
                .any(|skipped| text.is_char_boundary(skipped) && matches(rest, &text[skipped..]))
        }),
    }
}

#[test]
fn policies_are_read_as_aws_reads_them() {
    assert!(matches("a/*/b/*", "a/x/y/b/c"));
    assert!(!matches("a/*/b/*", "a/b/c"));
    assert!(matches("a", "a") && !matches("a", "ab"));
    let request = |operation, key: &str, head: &str| Request {
        operation,
        key: key.to_owned(),
        head: head.to_owned(),
    };
    let Documented { add, conditional, remove, versions, remove_versions } = Documented::read();
    let may = |policy: &Policy, request: &Request| policy.plan()(request) != Some(DENIED);
    let get = request("GetObject", "some/prefix/x", "");
    assert!(may(&add, &get) && !may(&remove, &get));
    assert!(!may(&add, &request("GetObject", "some/other/x", "")));
    assert_eq!(add.plan()(&get), Some(Fault::Without("x-amz-object-lock-")));
    assert_eq!(add.and(&versions).plan()(&get), None);
    let put = request("PutObject", "some/prefix/x", "");
    let created = request("PutObject", "some/prefix/x", "PUT / HTTP/1.1\r\nif-none-match: *\r\n");
    let lease = request("PutObject", "some/prefix/clusters/main/leases/x", "");
    let adds = add.and(&conditional);
    assert!(may(&add, &put) && !may(&adds, &put) && may(&adds, &created) && may(&adds, &lease));
    let delete = request("DeleteObject", "some/prefix/x", "DELETE /x HTTP/1.1");
    let version = request("DeleteObject", "some/prefix/x", "DELETE /x?versionId=1 HTTP/1.1");
    let removes = add.and(&remove);
    assert!(!may(&add, &delete) && may(&removes, &delete) && !may(&removes, &version));
    assert!(may(&remove_versions, &version));
}
