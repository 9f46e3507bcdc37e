-- ARGV: cursor, pattern, count. Gives the next cursor, then keys and kinds.
local step = redis.call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local answer = { step[1] }
for _, key in ipairs(step[2]) do
  answer[#answer + 1] = key
  answer[#answer + 1] = kind_of(key)
end
return answer
