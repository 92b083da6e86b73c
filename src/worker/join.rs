//! Makes one object of a tar that is spread over several sets: a full copy, in a folder of its own.

use crate::backup_set::{Content, Object};
use crate::encryption::Recipients;
use crate::pipeline::handover::handover;
use crate::pipeline::{Compression, compress};

use super::process::Line;
use super::unpack::{Unread, chain};
use super::{Event, Failure, JoinJob, Trouble, pipeline_failure, storage_failure};

/// Does the job.
pub(super) fn run(job: &JoinJob, line: &Line) -> Result<Vec<String>, Failure> {
    let Some(parts) = &job.tar.chain else {
        return Err(Failure::new(Trouble::Request, "the tar is one object already"));
    };
    let unusable = |error| storage_failure("the repository cannot be used", &error);
    let from = job.tar.place.open().map_err(unusable)?;
    let writing = |error| storage_failure(&format!("writing {} failed", job.object), &error);
    let mut upload = job.to.open().map_err(writing)?.begin(&job.object).map_err(writing)?;
    let compression =
        Compression { codec: job.codec, threads: job.tar.threads(), frame_bytes: super::volume::frame_bytes() };
    let stop = line.stop.child_token();
    let (mut giver, mut taker) = handover();
    let (read, written) = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let read = chain::read(&job.tar, parts, &from, &mut giver, line);
            read.and_then(|()| giver.finish().map_err(|_| Unread::Abandoned))
        });
        let recipients: Option<&Recipients> = job.recipients.as_ref();
        let written = compress(&mut taker, &mut upload, compression, recipients, &line.meter, &stop);
        drop(taker);
        (reading.join(), written)
    });
    match read.unwrap_or_else(|_| Err(Failure::new(Trouble::Other, "reading hit a bug").into())) {
        // What could not be written, the other side knows.
        Ok(()) | Err(Unread::Abandoned) => {}
        Err(Unread::Failed(failure)) => return Err(failure),
    }
    let sealed = written.map_err(|error| pipeline_failure(&format!("writing {}", job.object), &error))?;
    upload.commit().map_err(writing)?;
    let content = Content::Volume(Box::new(job.copy.clone()));
    let (stored, plain) = (sealed.stored, sealed.plain);
    line.tell(&Event::Object(Object { name: job.object.clone(), content, stored, plain, seconds: 0.0 }));
    Ok(vec![])
}
