-- Says that a node is there, with its subscribers, and forgets those that have not for long.
-- KEYS: nodes, this node; ARGV: node, subscribers as JSON, seconds
if redis.replicate_commands then redis.replicate_commands() end
local now = redis.call('TIME')[1]
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', tostring(tonumber(now) - tonumber(ARGV[3])))
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
return 1
