# Runs the sync for Windows Task Scheduler, appends what it says to logs\sync_athletes.log (UTF-8), and
# ends with its exit code. Options are passed on, for example --incremental.
#
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File python\scripts\run_sync_athletes.ps1
#
# Windows PowerShell 5.1 or later. Settings are not read here: the script reads .env by itself.

$ErrorActionPreference = 'Stop'

$project = [IO.Path]::GetFullPath((Join-Path $PSScriptRoot '..\..'))
$name = 'logs\sync_athletes.log'
$log = Join-Path $project $name
$largestLog = 5MB

function Write-Log([string] $text) {
    try {
        [IO.File]::AppendAllText($log, [DateTime]::UtcNow.ToString('s') + 'Z ' + $text + "`r`n")
    } catch {
        # The exit code counts more.
    }
}

function Limit-Logs {
    try {
        Get-ChildItem -LiteralPath (Join-Path $project 'logs') -Filter 'sync_athletes-*.log' |
            Where-Object { $_.LastWriteTime -lt (Get-Date).AddDays(-30) } |
            Remove-Item -ErrorAction SilentlyContinue
        if ((Get-Item -LiteralPath $log).Length -gt $largestLog) {
            [IO.File]::Open($log, 'Open', 'Write', 'None').Dispose()
            [IO.File]::Delete("$log.1")
            [IO.File]::Move($log, "$log.1")
        }
    } catch {
        # It is not there yet, or somebody reads it just now: it grows on until a later run.
    }
}

[void] [IO.Directory]::CreateDirectory((Join-Path $project 'logs'))

# cmd opens a log for itself alone, and runs nothing if it cannot. Where another run has this one, or an
# editor, a log of our own takes its place. The lock is between wrappers: two may start at once.
$lock = $null
try {
    $lock = [IO.File]::Open((Join-Path $project 'logs\sync_athletes.lock'), 'OpenOrCreate', 'Write', 'None')
    Limit-Logs
    [IO.File]::Open($log, 'Append', 'Write', 'Read').Dispose()
} catch {
    $name = "logs\sync_athletes-$PID.log"
    $log = Join-Path $project $name
}

if (-not [IO.File]::Exists((Join-Path $project '.venv\Scripts\python.exe'))) {
    Write-Log ("ERROR packages: there is no .venv\Scripts\python.exe in $project. Next: py -m venv .venv, " +
               'then .venv\Scripts\pip install -r python\requirements.txt (exit code 1)')
    if ($lock) { $lock.Dispose() }
    exit 1
}

# cmd redirects, because PowerShell 5.1 would re-encode what Python prints and turn each line of stderr
# into an error. Relative paths, because cmd would stumble over some characters of a full one.
Set-Location -LiteralPath $project
$env:PYTHONIOENCODING = 'utf-8'
$options = $args | ForEach-Object { if ($_ -match '[^\w.:=\\-]') { '"' + $_ + '"' } else { $_ } }
$command = '.venv\Scripts\python.exe python\scripts\sync_athletes_from_app.py ' + ($options -join ' ') +
    " >> $name 2>&1"
& $env:ComSpec /d /c $command
$code = $LASTEXITCODE

if ($code -ge 100 -and $code -le 109) {
    # Not the script's: .venv's python.exe has not found the Python that it was made from.
    Write-Log ('ERROR packages: the Python of .venv is gone. Next: py -m venv --clear .venv, ' +
               'then .venv\Scripts\pip install -r python\requirements.txt (exit code 1)')
    $code = 1
}
if ($code -ne 0) {
    Write-Log "ERROR wrapper: the sync ended with exit code $code"
}
if ($lock) { $lock.Dispose() }
exit $code
