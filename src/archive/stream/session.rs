//! One connection's worth of streaming: who is there, what is missing, and receiving that.

use tokio::{runtime::Handle, sync::watch};

use super::{
    super::push::open_store,
    assemble::assemble,
    compare::compare,
    gaps::{Stretch, missing},
    keep::{Closed, Keeper, is_outage},
    progress::Progress,
    receiver::Receiver,
    setbacks::Setbacks,
    stretch::{Begin, End, Pace},
    synchronous,
};
use crate::{
    config::{ClusterSettings, RepositorySettings},
    error::{Error, Kind, Result},
    postgres::{
        Lsn, SegmentName, SegmentSize, Timeline, WalFile,
        client::{Client, ConnInfo, Mode, PgError},
        history::TimelineHistory,
        replication::{SystemIdentity, identify_system, show, timeline_history},
        streaming::{Started, WalStream, create_slot, drop_slot, read_slot},
    },
    repo::{
        SystemId, catalog,
        layout::ClusterLayout,
        opening::open_each,
        timelines::WalInventory,
        wal::WalStore,
        wal_parts::{Part, covered},
    },
};

/// SQLSTATE undefined_file: the server doesn't have the WAL any more.
pub const REMOVED: &str = "58P01";

/// SQLSTATE object_not_in_prerequisite_state: what an invalidated slot is refused with.
const NOT_READY: &str = "55000";

/// SQLSTATE insufficient_privilege, and the one of pg_hba.conf.
const REFUSED: [&str; 2] = ["42501", "28000"];

/// What goes on from one connection to the next.
pub struct Context<'a> {
    /// Where WAL is stored.
    pub repositories: &'a [&'a RepositorySettings],
    /// Whose it is, and how it is streamed.
    pub cluster: &'a ClusterSettings,
    /// What stores it.
    pub threads: &'a Handle,
    /// Where it comes from.
    pub info: &'a ConnInfo,
    /// Who hears of it.
    pub progress: &'a Progress,
    /// The last segment that the server was asked for and doesn't have any more. All before it are gone
    /// as well.
    pub removed: Option<Removed>,
    /// A segment that the server doesn't have any more to be compared with.
    pub incomparable: Option<SegmentName>,
    /// Whether WAL has been received.
    pub has_streamed: bool,
    /// The repositories that held up the others.
    pub setbacks: Setbacks,
}

/// A segment that a server doesn't have any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// The timeline that the server was on.
    server: Timeline,
    number: u64,
}

/// How a connection ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// There is more to do: with a new connection.
    Again,
    /// The server shuts down.
    ServerEnd,
    /// The command is to end.
    Stopped,
}

/// A server that is connected.
struct Server {
    client: Client,
    identity: SystemIdentity,
    size: SegmentSize,
    path: TimelineHistory,
    synchronous: bool,
}

/// Connects and streams until the connection ends.
pub async fn session(
    context: &mut Context<'_>,
    stop: &mut watch::Receiver<bool>,
) -> Result<SessionEnd> {
    let mut client = Client::connect(context.info, Mode::Replication)
        .await
        .map_err(|e| connect_error(context, e))?;
    let lost = |doing: &'static str| move |e| Error::of_server(doing, e);
    client.server_version().check_supported().map_err(lost("stream"))?;
    let identity = identify_system(&mut client).await.map_err(lost("ask who is there"))?;
    let system =
        SystemId { major: client.server_version().major(), identifier: identity.system_identifier };
    let size = segment_size(&mut client).await?;
    let setting = show(&mut client, "synchronous_standby_names")
        .await
        .map_err(lost("read synchronous_standby_names"))?;
    let is_synchronous = synchronous::names(&setting, context.info.application_name());

    let (stores, closed) = open_stores(context, system).await?;
    let setbacks = context.setbacks.clone();
    let path = store_histories(&mut client, identity.timeline, &stores, &setbacks).await?;
    let held = slot(&mut client, context).await?;
    let mut server = Server { client, identity, size, path, synchronous: is_synchronous };
    let keeper = Keeper::new(stores, closed, context.repositories, setbacks);
    let (stretches, last_whole) = stretches(context, &server, &keeper, held).await?;
    tracing::debug!(?stretches, "what is missing");
    if let Some(segment) = last_whole.filter(|last| context.incomparable != Some(*last))
        && !compare(&mut server.client, segment, size, keeper.archives(), &context.setbacks).await?
    {
        context.incomparable = Some(segment);
        return Ok(SessionEnd::Again);
    }

    let (answer, synchronous) = watch::channel(server.synchronous);
    let pace = Pace { max_lag: context.cluster.stream.max_lag, synchronous };
    let watching = synchronous::watch_setting(context.info.clone(), answer);
    let watching = context.threads.spawn(watching);
    let _watching = AbortOnDrop(watching);
    for stretch in stretches {
        let leaves_some = stretch.leaves_some;
        if let Some(end) = receive(context, &mut server, &keeper, &pace, stretch, stop).await? {
            return Ok(end);
        }
        if leaves_some {
            // Nothing holds them for the stream, so they come before what is held.
            return Ok(SessionEnd::Again);
        }
    }
    Ok(SessionEnd::Again)
}

/// Opens the repositories, those that are to be left alone only where there is no other. Those that couldn't be opened
/// come second, for whatever reason: what is wrong with one costs the others nothing.
async fn open_stores(
    context: &Context<'_>,
    system: SystemId,
) -> Result<(Vec<WalStore>, Vec<Closed>)> {
    let layout = ClusterLayout::new(&context.cluster.name)?;
    let (mut stores, mut closed, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    let pause = |settings: &RepositorySettings| context.setbacks.pause(&settings.name);
    let each = context.repositories.iter().copied();
    let (due, mut alone): (Vec<_>, Vec<_>) = each.partition(|settings| pause(settings).is_zero());
    alone.sort_by_key(|settings| pause(settings));
    let mut sort = |settings: &RepositorySettings, opened: Result<WalStore>| {
        let doing = || format!("stream into repository {}", settings.name);
        match opened {
            Ok(store) => stores.push(store),
            Err(e) => {
                closed.push(Closed { settings: settings.clone(), layout: layout.clone(), system });
                left_out.push(e.while_doing(doing()));
            }
        }
        !stores.is_empty()
    };
    let mut is_any_open = false;
    let opened = open_each(&due, |settings| open_store(settings, &layout, system)).await;
    for (settings, opened) in due.into_iter().zip(opened) {
        is_any_open = sort(settings, opened);
    }
    for settings in alone {
        let opened = if is_any_open {
            let what = format!("it is left alone for {} s", pause(settings).as_secs());
            Err(Error::new(Kind::Repository, what))
        } else {
            open_store(settings, &layout, system).await
        };
        is_any_open = sort(settings, opened);
    }
    if stores.is_empty() {
        // As long as one of them may come back, waiting helps.
        left_out.sort_by_key(|e| !is_outage(e));
        let mut left_out = left_out.into_iter();
        let first = left_out.next();
        left_out.for_each(|e| tracing::warn!("{e}"));
        return Err(first.unwrap_or_else(|| Error::new(Kind::Usage, "no repository is configured")));
    }
    for e in left_out {
        tracing::warn!(
            "{e}; the others go on without it, and nothing is reported as stored until it is there"
        );
    }
    Ok((stores, closed))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Receives one stretch. `None` when it is complete and the connection is still of use.
async fn receive(
    context: &mut Context<'_>,
    server: &mut Server,
    keeper: &Keeper,
    pace: &Pace,
    stretch: Stretch,
    stop: &mut watch::Receiver<bool>,
) -> Result<Option<SessionEnd>> {
    let size = server.size;
    let segment = size.name(stretch.timeline, stretch.first);
    let mut parts: Vec<Vec<Part>> = Vec::new();
    for store in keeper.archives() {
        parts.push(context.setbacks.ask(store, store.parts(segment)).await?);
    }
    let known_of = |parts: &Vec<Part>| covered(parts.iter().map(|part| &part.range));
    let begins = size.start_of(stretch.first);
    for (store, parts) in keeper.archives().zip(&mut parts) {
        context.setbacks.ask(store, prove_parts(store, parts)).await?;
    }
    let known = parts.iter().map(known_of).min().unwrap_or(0).min(size.bytes());
    let begin = Begin {
        timeline: stretch.timeline,
        number: stretch.first,
        size,
        durable: Lsn(begins.0 + known),
        parts,
    };
    let is_live = stretch.until.is_none();
    // What is reported of an older stretch would set the slot back.
    let slot = is_live.then_some(context.cluster.stream.slot.as_str());
    let started = WalStream::start(&mut server.client, slot, begins, stretch.timeline).await;
    let mut stream = match started {
        Ok(Started::Stream(stream)) => stream,
        Err(e) if is_live && e.code() == Some(NOT_READY) => {
            // What it holds isn't kept for it any more (`slot.c`, `ReplicationSlotAcquire`).
            tracing::warn!("{}", Error::of_server("use the replication slot", e));
            remove_slot(&mut server.client, &context.cluster.stream.slot).await?;
            return Ok(Some(SessionEnd::Again));
        }
        Err(e) => return Err(Error::of_server("ask for WAL", e)),
        Ok(Started::Ended(next)) => {
            tracing::info!("timeline {} has ended at {}", stretch.timeline, next.start);
            return Ok(None);
        }
    };
    match stretch.until {
        None => context.progress.begins(format!(
            "{}, timeline {}",
            server.identity.system_identifier, stretch.timeline
        )),
        Some(until) => tracing::info!(
            "{} segments from {segment} on are missing in the archive: asking the server for them",
            until - stretch.first
        ),
    }
    let until = stretch.until.map(|until| size.start_of(until));
    let threads = context.threads.clone();
    let mut receiver = Receiver::new(keeper.clone(), threads, pace.clone(), begin);
    context.progress.receiving(true);
    let received = receiver.run(&mut stream, until, stop, context.progress).await;
    context.progress.receiving(false);
    context.has_streamed |= is_live;
    match received {
        Ok(End::Reached) => {
            stream.stop().await.map_err(|e| Error::of_server("end a stream", e))?;
            Ok(None)
        }
        Ok(End::Timeline) => {
            let next = stream.finish().await.map_err(|e| Error::of_server("end a stream", e))?;
            tracing::info!("timeline {} begins at {}", next.timeline, next.start);
            Ok(Some(SessionEnd::Again))
        }
        Ok(End::Back) => Ok(Some(SessionEnd::Again)),
        Ok(End::Server) => Ok(Some(SessionEnd::ServerEnd)),
        Ok(End::Stopped) => Ok(Some(SessionEnd::Stopped)),
        Err(e) if e.sqlstate() == Some(REMOVED) => {
            let gone = receiver.next_segment();
            tracing::warn!(
                "{} is missing in the archive, and the server doesn't have it any more: no moment \
                 behind it can be reached from a backup before it",
                size.name(stretch.timeline, gone)
            );
            context.removed = Some(Removed { server: server.identity.timeline, number: gone });
            Ok(Some(SessionEnd::Again))
        }
        Err(e) => Err(e),
    }
}

/// Makes sure that the parts which are going to count can be read and are durable. Those that can't be
/// read don't count.
async fn prove_parts(store: &WalStore, parts: &mut Vec<Part>) -> Result<()> {
    let mut sound = Vec::with_capacity(parts.len());
    for part in std::mem::take(parts) {
        match store.prove_part(&part.name).await {
            Ok(()) => sound.push(part),
            Err(e) if e.kind() == Kind::Damaged => tracing::warn!("{e}"),
            Err(e) => return Err(e),
        }
    }
    *parts = sound;
    Ok(())
}

/// Makes sure that whole segments which are going to count from the position that the slot holds on are
/// durable: whoever stores one at this moment may not be done. And makes segments of parts that have all
/// of one, as a receiver that was killed left them.
async fn settle(
    store: &WalStore,
    inventory: &mut WalInventory,
    path: &TimelineHistory,
    (held, present): (u64, u64),
) -> Result<()> {
    let size = inventory.segment_size;
    for number in held..=present {
        if let Some(segment) = inventory.segment(path, number) {
            if let Some(name) = store.find(WalFile::Segment(segment)).await? {
                store.repository().storage().ensure_durable(&name).await?;
            }
        } else if let Some(closed) = inventory.partial(path, number)
            && !inventory.ends_in(path, number)
        {
            // Parts up to a switch record are as good.
            prove_parts(store, &mut store.parts(closed).await?).await?;
        }
    }
    let mut made = false;
    for (timeline, wal) in inventory.timelines() {
        for (number, parts) in &wal.parts {
            if covered(parts) != size.bytes() {
                continue;
            }
            match assemble(store, size.name(timeline, *number), size).await {
                Ok(()) => made = true,
                // The server may have it.
                Err(e) if matches!(e.kind(), Kind::Damaged | Kind::Conflict) => {
                    tracing::warn!("{e}");
                }
                Err(e) => return Err(e),
            }
        }
    }
    if made {
        *inventory = WalInventory::read_what_can_be(store, size).await?;
    }
    Ok(())
}

/// The path to the server's timeline, all of whose history files are stored.
async fn store_histories(
    client: &mut Client,
    timeline: Timeline,
    stores: &[WalStore],
    setbacks: &Setbacks,
) -> Result<TimelineHistory> {
    if timeline == Timeline(1) {
        return Ok(TimelineHistory::first());
    }
    let content = timeline_history(client, timeline)
        .await
        .map_err(|e| Error::of_server("ask for the timeline's history", e))?;
    let path = TimelineHistory::parse(timeline, &content).map_err(|e| {
        let what = format!("the server's {} can't be read", timeline.history_file());
        Error::new(Kind::Postgres, what).because(e)
    })?;
    for store in stores {
        let name = store.repository().name();
        let doing = || format!("store {} in repository {name}", timeline.history_file());
        let stored = store.store_history(timeline, &content);
        setbacks.ask(store, stored).await.map_err(|e| e.while_doing(doing()))?;
    }
    for ancestor in path.path().map(|(timeline, ..)| timeline) {
        if ancestor == Timeline(1) || ancestor == timeline {
            continue;
        }
        for store in stores {
            let is_there = setbacks.ask(store, is_readable(store, ancestor));
            if is_there.await? {
                continue;
            }
            match timeline_history(client, ancestor).await {
                Ok(content) => {
                    setbacks.ask(store, store.store_history(ancestor, &content)).await?;
                }
                Err(e) => tracing::warn!("the server hasn't {}: {e}", ancestor.history_file()),
            }
        }
    }
    Ok(path)
}

/// Whether a timeline's history is there and can be read.
async fn is_readable(store: &WalStore, timeline: Timeline) -> Result<bool> {
    match store.history(timeline).await {
        Ok(content) => Ok(content.is_some()),
        Err(e) if e.kind() == Kind::Damaged => {
            tracing::warn!("{e}");
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Makes the slot unless it is there. Returns the position from which on it holds WAL.
async fn slot(client: &mut Client, context: &Context<'_>) -> Result<Lsn> {
    let name = &context.cluster.stream.slot;
    let ask = |e| Error::of_server(format!("read the replication slot {name}"), e);
    let was_there = match read_slot(client, name).await.map_err(ask)? {
        None => false,
        Some((held, _)) if held > Lsn::INVALID => return Ok(held),
        // It holds nothing: the server has given it up, or it was made without reserving WAL. One that was
        // given up may look well later, and holds nothing all the same (`slot.c`).
        Some(_) => {
            remove_slot(client, name).await?;
            true
        }
    };
    create_slot(client, name)
        .await
        .map_err(|e| Error::of_server(format!("make the replication slot {name}"), e))?;
    if context.has_streamed {
        tracing::warn!(
            "the slot {name} wasn't there any more: what the server removed meanwhile is missing"
        );
    } else if !was_there {
        // By a misspelt name too, and the one that was meant holds the server's WAL for ever then.
        tracing::warn!(
            "made the replication slot {name}, as the server had none of this name; it holds WAL for this stream \
             from now on, and one of another name holds its own (pg_replication_slots)"
        );
    }
    match read_slot(client, name).await.map_err(ask)? {
        Some((held, _)) if held > Lsn::INVALID => Ok(held),
        _ => {
            Err(Error::new(Kind::Postgres, format!("the new replication slot {name} holds no WAL")))
        }
    }
}

/// Removes a slot that holds nothing, so that it is made anew.
async fn remove_slot(client: &mut Client, name: &str) -> Result<()> {
    tracing::warn!("the replication slot {name} holds no WAL: it is made anew");
    let lost = |e| Error::of_server(format!("remove the replication slot {name}"), e);
    drop_slot(client, name).await.map_err(lost)
}

/// What is to be received, in order; and the segment before the live end, where that is stored.
async fn stretches(
    context: &Context<'_>,
    server: &Server,
    keeper: &Keeper,
    held: Lsn,
) -> Result<(Vec<Stretch>, Option<SegmentName>)> {
    let (size, path) = (server.size, &server.path);
    let present = size.number_at(server.identity.position);
    let held = size.number_at(held);
    let mut from = held;
    let mut inventories = Vec::new();
    for store in keeper.archives() {
        let backups = context.setbacks.ask(store, async {
            // The server says where its timelines come from; an archive that can't is no reason to wait.
            let mut inventory = WalInventory::read_what_can_be(store, size).await?;
            settle(store, &mut inventory, path, (held, present)).await?;
            inventories.push(inventory);
            catalog::backups(store.repository(), store.layout()).await
        });
        let backups = backups.await?;
        let newest = backups.iter().rev().find(|record| {
            record.system == store.system() && path.includes(record.timeline, record.start_lsn)
        });
        if let Some(record) = newest {
            from = from.min(size.number_at(record.start_lsn));
        }
    }
    let mut stretches = missing(path, &inventories, from, held, present);
    let before_live = stretches.last().and_then(|live| live.first.checked_sub(1));
    let last_whole = before_live.and_then(|number| {
        inventories.iter().filter_map(|inventory| inventory.segment(path, number)).next()
    });
    let removed = context.removed.filter(|removed| removed.server == server.identity.timeline);
    if let Some(removed) = removed {
        stretches.retain_mut(|stretch| stretch.skip_removed(removed.number));
    }
    Ok((stretches, last_whole))
}

/// The size of segments, as the server writes it: `16MB`, `1GB`.
async fn segment_size(client: &mut Client) -> Result<SegmentSize> {
    let text = show(client, "wal_segment_size")
        .await
        .map_err(|e| Error::of_server("read wal_segment_size", e))?;
    let units = [("MB", 1 << 20), ("GB", 1 << 30)];
    let bytes = units.iter().find_map(|(unit, bytes)| {
        Some(text.strip_suffix(unit)?.trim().parse::<u64>().ok()? * bytes)
    });
    bytes.and_then(SegmentSize::new).ok_or_else(|| {
        Error::new(Kind::Postgres, format!("the server says that wal_segment_size is {text}"))
    })
}

fn connect_error(context: &Context<'_>, e: PgError) -> Error {
    let refused = e.code().is_some_and(|code| REFUSED.contains(&code));
    let error = Error::of_server("connect for replication", e);
    match refused {
        true => error.hint(format!(
            "there has to be a role {}, with the attributes LOGIN and REPLICATION, and pg_hba.conf a line whose database is \
             the word replication; `pgkeep check` says what is missing",
            context.info.user()
        )),
        false => error,
    }
}
