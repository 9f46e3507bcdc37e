-- ARGV: two keys. Gives what is at each then.
local a, b = read(ARGV[2]), read(ARGV[3])
local no = lost(ARGV[2], a, 'there', '') or lost(ARGV[3], b, 'there', '')
if no then return no end
redis.call('SET', head(ARGV[2]), b.text)
redis.call('SET', head(ARGV[3]), a.text)
return { 'ok', b.text, a.text }
