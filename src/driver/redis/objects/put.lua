-- ARGV: key, condition, etag, body, runs, size, 'inline' or 'sent', the bytes, then the fields of
-- attributes and commits.
local key, body, runs = ARGV[2], ARGV[5], ARGV[6]
-- It may be sent again when the answer was lost.
local there = redis.call('HMGET', head(key), 'b', 'e', 't')
if there[1] == body then return { 'ok', there[2], there[3] } end
local no = lost(key, ARGV[3], ARGV[4])
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
drop(key)
redis.call('HSET', head(key), 'e', etag, 't', time, 's', ARGV[7], 'b', body, 'r', runs)
fields(head(key), ARGV, 10, #ARGV)
enter(key)
return { 'ok', etag, time }
