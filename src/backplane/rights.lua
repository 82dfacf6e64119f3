-- The first command of those that a node needs which its user may not run; '' if there is none, or
-- if Redis cannot tell (before 7.0).
-- ARGV, since nothing is done with them: the keys stream, log, feeds, one more of the log's
if not redis.acl_check_cmd then return '' end
local stream, log, feeds, other = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local needed = {
  {'TIME'}, {'SCRIPT', 'LOAD', ''}, {'EVALSHA', '', '1', other},
  {'TYPE', stream}, {'EXISTS', stream}, {'XINFO', 'STREAM', stream}, {'XRANGE', stream, '-', '+'},
  {'XREAD', 'STREAMS', stream, '0'}, {'XADD', stream, '*', 'h', ''}, {'XTRIM', stream, 'MAXLEN', '1'},
  {'TYPE', log}, {'HGET', log, 'id'}, {'HMGET', log, 'id'}, {'HSET', log, 'id', ''},
  {'HGET', feeds, ''}, {'HGETALL', feeds}, {'HSET', feeds, '', ''}, {'DEL', feeds},
  {'GET', other}, {'MGET', other}, {'SET', other, ''}, {'DEL', other},
  {'ZADD', other, '0', ''}, {'ZRANGE', other, '0', '-1'}, {'ZREM', other, ''},
  {'ZREMRANGEBYSCORE', other, '-inf', '0'},
}
for _, command in ipairs(needed) do
  if not redis.acl_check_cmd(unpack(command)) then return table.concat(command, ' ') end
end
return ''
