//! Renames. What is saved by renaming over a key gets that key's kind and time to live.

use super::calls::{Put, Told, condition, granted, plain};
use super::names::Form;
use super::{Data, RENAME};
use crate::driver::redis::answer::{bytes, garbled, int, next};
use crate::driver::{CopyOptions, ETag, ObjectInfo, Result};
use crate::key::Key;
use ::redis::Value;

/// That what would be replaced has another kind.
const KINDS: &[u8] = b"kinds";

impl Data {
    /// Renames a key. Where it changes its form, or replaces what has another kind, it is written
    /// anew in the same step.
    pub(super) async fn moved(
        &self,
        from: &Key,
        to: &Key,
        options: CopyOptions,
    ) -> Result<ObjectInfo> {
        let forms = [from, to].map(|name| self.0.names.stored(name).1);
        if forms[0] == forms[1]
            && let Some(info) = self.renamed(from, to, &options).await?
        {
            return Ok(info);
        }
        let source = options.source.as_ref().map(plain);
        let source = source.map(|etag| ETag::new(String::from_utf8_lossy(etag)));
        let (info, text) = match self.fetch(from, 0..u64::MAX, source.as_ref(), None).await {
            Ok(Some(found)) => found,
            Ok(None) => return Err(garbled()),
            Err(error) => return Err(error.on(from)),
        };
        // Before it goes: the answer of what takes it away may be lost.
        self.keep_kind(from).await?;
        let put = Put {
            text,
            base: None,
            precondition: options.destination,
            source: Some((from.clone(), Some(info.etag))),
        };
        self.write(to, put).await
    }

    /// Renames a key to a name of the same form; `None` where what is there has another kind.
    async fn renamed(
        &self,
        from: &Key,
        to: &Key,
        options: &CopyOptions,
    ) -> Result<Option<ObjectInfo>> {
        let ((source, form), (target, _)) = (self.0.names.stored(from), self.0.names.stored(to));
        let [kind, etag] = condition(&options.destination);
        let etag_of_source = options.source.as_ref().map_or(&b""[..], plain);
        let arguments = [form.word(), etag_of_source, kind, etag];
        let keys = [source.as_slice(), &target];
        let renaming = async {
            let answer = self.0.link.run(&RENAME, &keys, arguments).await?;
            match &answer {
                Value::Array(said) if *said == [Value::BulkString(KINDS.into())] => Ok(None),
                _ => granted(answer, to, from).map(Some),
            }
        };
        let Some(mut rest) = self.0.echoes.of(&keys, renaming).await? else {
            self.0.echoes.forget(&keys);
            return Ok(None);
        };
        let mut told = Told::parse(next(&mut rest)?)?;
        self.0.gone.lock().pop(to);
        self.went(from, told.kind.clone(), int(next(&mut rest)?)?);
        let size = match form {
            Form::Text => told.size,
            Form::Document => told.render()?.len() as u64,
        };
        self.written(to, &told.etag);
        Ok(Some(self.info(to, told.etag, told.left, size)))
    }

    /// Notes the kind of a key that is about to be taken away, and its time to live.
    async fn keep_kind(&self, key: &Key) -> Result<()> {
        let (name, _) = self.0.names.stored(key);
        let ask = |command: &str| {
            let mut cmd = ::redis::cmd(command);
            cmd.arg(&name);
            cmd
        };
        let kind = bytes(self.0.link.ask(&ask("TYPE")).await?)?;
        self.went(key, kind, int(self.0.link.ask(&ask("PTTL")).await?)?);
        Ok(())
    }
}
