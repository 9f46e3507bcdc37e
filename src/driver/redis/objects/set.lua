-- ARGV: key, its etag or '', how many names go, those, then the fields that come.
local key, gone = ARGV[2], tonumber(ARGV[4])
local no = lost(key, 'there', ARGV[3])
if no then return no end
redis.call('HSET', head(key), 'e', version(), 't', now())
for at = 5, 4 + gone do redis.call('HDEL', head(key), ARGV[at]) end
fields(head(key), ARGV, 5 + gone, #ARGV)
return { 'ok', redis.call('HGETALL', head(key)), '' }
