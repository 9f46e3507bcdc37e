-- KEYS: the key. ARGV: form, condition, etag. Gives what it was: kind and milliseconds to live.
local key = KEYS[1]
local kind = kind_of(key)
local there = form_of(kind) == ARGV[1]
if ARGV[2] == 'match' then
  if not there then return { 'changed', '' } end
  local told = facts(key, kind)
  if told[2] ~= ARGV[3] then return { 'changed', told[2] } end
end
if not there then return { 'ok', 'none', 0 } end
local left = redis.call('PTTL', key)
redis.call('UNLINK', key)
return { 'ok', kind, left }
