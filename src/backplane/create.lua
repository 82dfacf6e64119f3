-- Begins a log, if there is none; whose it is then.
-- KEYS: stream, log, feeds
-- ARGV: identity, id of the first entry, its header, which run of Redis this is, then each state's feed, revision and payload
if redis.replicate_commands then redis.replicate_commands() end
local identity = redis.call('HGET', KEYS[2], 'id')
if identity then return identity end
if redis.call('EXISTS', KEYS[1]) == 1 then return '' end
redis.call('HSET', KEYS[2], 'id', ARGV[1])
-- Programs that know only earlier versions do not join it.
redis.call('HSET', KEYS[2], 'version', '1')
if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], 'run', ARGV[4]) end
redis.call('XADD', KEYS[1], ARGV[2], 'h', ARGV[3], 'k', 'log')
redis.call('DEL', KEYS[3])
for at = 5, #ARGV, 3 do
  redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 1])
  redis.call('HSET', KEYS[3], ARGV[at] .. ':', ARGV[at + 2])
end
return ARGV[1]
