-- ARGV: key, condition, etag, body, runs, facts, 'inline' or 'sent', the bytes.
local key, body, runs = ARGV[2], ARGV[5], ARGV[6]
local old = read(key)
-- It may be sent again when the answer was lost.
if old and old.b == body then return { 'ok', old.e, old.t } end
local no = lost(key, old, ARGV[3], ARGV[4])
if no then return no end
if ARGV[8] == 'inline' then
  each(body, runs, function(name) redis.call('SET', name, ARGV[9]) end)
else
  local whole = true
  each(body, runs, function(name) whole = whole and redis.call('EXISTS', name) == 1 end)
  if not whole then return { 'parts' } end
  each(body, runs, function(name) redis.call('PERSIST', name) end)
end
local etag, time = version(), now()
save(key, etag, time, body, runs, ARGV[7])
drop(old)
if not old then enter(key) end
return { 'ok', etag, time }
