-- ARGV: two keys. Gives what is at each then.
local a, b, between = head(ARGV[2]), head(ARGV[3]), root .. 'x'
local no = lost(ARGV[2], 'there', '') or lost(ARGV[3], 'there', '')
if no then return no end
if a ~= b then
  redis.call('RENAME', a, between)
  redis.call('RENAME', b, a)
  redis.call('RENAME', between, b)
end
return { 'ok', redis.call('HGETALL', a), redis.call('HGETALL', b) }
