# Runs the sync for Windows Task Scheduler, appends what it says to logs\sync_athletes.log (UTF-8), and
# ends with its exit code. Options are passed on, for example --incremental.
#
#   powershell.exe -NoProfile -ExecutionPolicy Bypass -File python\scripts\run_sync_athletes.ps1
#
# Windows PowerShell 5.1 or later. Settings are not read here: the script reads .env by itself.

$ErrorActionPreference = 'Stop'

$project = [IO.Path]::GetFullPath((Join-Path $PSScriptRoot '..\..'))
$log = Join-Path $project 'logs\sync_athletes.log'
$largestLog = 5MB

function Write-Log([string] $text) {
    [IO.File]::AppendAllText($log, [DateTime]::UtcNow.ToString('s') + 'Z ' + $text + "`r`n")
}

function Limit-Log {
    if ([IO.File]::Exists($log) -and (Get-Item -LiteralPath $log).Length -gt $largestLog) {
        try {
            [IO.File]::Delete("$log.1")
            [IO.File]::Move($log, "$log.1")
        } catch {
            # Somebody reads it just now: it grows on until the next run.
        }
    }
}

[void] [IO.Directory]::CreateDirectory((Join-Path $project 'logs'))
Limit-Log

if (-not [IO.File]::Exists((Join-Path $project '.venv\Scripts\python.exe'))) {
    Write-Log ("ERROR packages: there is no .venv\Scripts\python.exe in $project. Next: py -m venv .venv, " +
               'then .venv\Scripts\pip install -r python\requirements.txt (exit code 1)')
    exit 1
}

# cmd redirects, because PowerShell 5.1 would re-encode what Python prints and turn each line of stderr
# into an error. Relative paths, because cmd would stumble over some characters of a full one.
Set-Location -LiteralPath $project
$env:PYTHONIOENCODING = 'utf-8'
$options = $args | ForEach-Object { if ($_ -match '[^\w.:=\\-]') { '"' + $_ + '"' } else { $_ } }
$command = '.venv\Scripts\python.exe python\scripts\sync_athletes_from_app.py ' + ($options -join ' ') +
    ' >> logs\sync_athletes.log 2>&1'
& $env:ComSpec /d /c $command
$code = $LASTEXITCODE

if ($code -ne 0) {
    try { Write-Log "ERROR wrapper: the sync ended with exit code $code" } catch { } # the code counts more
}
exit $code
