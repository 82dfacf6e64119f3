-- Goes on further up, when Redis has lost the end of the log or may have.
-- KEYS: stream, log
-- ARGV: identity, the last id and the run of Redis as the node saw them in the log, id of the new
--   entry, its header, which run of Redis this is
if redis.replicate_commands then redis.replicate_commands() end
if redis.call('HGET', KEYS[2], 'id') ~= ARGV[1] then return 0 end
if (redis.call('HGET', KEYS[2], 'run') or '') ~= ARGV[3] then return 0 end
local last = '0-0'
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for at = 1, #info, 2 do
    if info[at] == 'last-generated-id' then last = info[at + 1] end
  end
end
if last ~= ARGV[2] then return 0 end
redis.call('XADD', KEYS[1], ARGV[4], 'h', ARGV[5], 'k', 'log')
if ARGV[6] ~= '' then redis.call('HSET', KEYS[2], 'run', ARGV[6]) end
return 1
