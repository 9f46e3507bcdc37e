-- ARGV: from, its etag or '', to, condition, etag, commits or ''.
local from, to = ARGV[2], ARGV[4]
local no = lost(from, 'there', ARGV[3]) or lost(to, ARGV[5], ARGV[6])
if no then return no end
enter(to)
drop(to)
redis.call('RENAME', head(from), head(to))
if ARGV[7] ~= '' then redis.call('HSET', head(to), 'c', ARGV[7]) end
strike(from)
return { 'ok', redis.call('HGETALL', head(to)), '' }
